// SPDX-License-Identifier: Apache-2.0
// What MQTT.js users rely on, in each version.

import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { after, before, describe, test } from 'node:test';

import { connect, LARGE_DEADLINE, startBroker, unique, VERSIONS } from './harness.js';

let broker;
// takes packets up to 16 MiB
let roomy;
const open = [];

before(async () => {
  broker = await startBroker();
  roomy = await startBroker('  options:\n    capabilities:\n      maximum-packet-size: 16777216\n');
});

after(async () => {
  for (const client of open) client.end(true);
  await broker.stop();
  await roomy.stop();
});

const digest = (bytes) => createHash('sha256').update(bytes).digest('hex');
const upTo = (count) => Array.from({ length: count }, (_, number) => String(number));
// where there are doubles, each message of a client waits for the one before
const many = (count) => upTo(process.env.CORQTT_TEST_DOUBLES ? count / 10 : count);
const payloads = (messages) => messages.map((message) => message.payload.toString());

async function join(version, options = {}, to = broker) {
  const joined = await connect(to, { ...version.options, ...options });
  open.push(joined.client);
  return joined;
}

for (const version of VERSIONS) {
  const five = version.options.protocolVersion === 5;
  // a session that outlives its connection
  const kept = five ? { clean: false, properties: { sessionExpiryInterval: 600 } } : { clean: false };

  describe(`MQTT ${version.name}`, { concurrency: false }, () => {
    for (const published of [0, 1, 2]) {
      for (const granted of [0, 1, 2]) {
        test(`QoS ${published} to a subscription of QoS ${granted}`, async () => {
          const topic = unique('t/');
          const subscriber = await join(version);
          const publisher = await join(version);
          const grants = await subscriber.subscribe(topic, { qos: granted });
          assert.equal(grants[0].qos, granted);
          // the second is the fence: a duplicate of the first comes before it
          for (const payload of ['x', 'end']) await publisher.publish(topic, payload, { qos: published });
          const got = await subscriber.receive(2);
          assert.deepEqual(payloads(got), ['x', 'end']);
          for (const message of got) assert.equal(message.packet.qos, Math.min(published, granted));
        });
      }
    }

    for (const qos of [0, 1, 2]) {
      test(`order of 2000 messages at QoS ${qos}`, async () => {
        const topic = unique('t/');
        const subscriber = await join(version);
        const publisher = await join(version);
        await subscriber.subscribe(topic, { qos });
        const numbers = many(2000);
        for (let start = 0; start < numbers.length; start += 500) {
          await Promise.all(numbers.slice(start, start + 500).map((number) => publisher.publish(topic, number, { qos })));
        }
        await publisher.publish(topic, 'end', { qos });
        assert.deepEqual(payloads(await subscriber.receive(numbers.length + 1)), [...numbers, 'end']);
      });
    }

    test('10,000 topics come back over one wildcard, each once', async () => {
      const base = unique('t/');
      const subscriber = await join(version);
      const publisher = await join(version);
      await subscriber.subscribe(`${base}/#`, { qos: 1 });
      const topics = many(10_000).map((number) => `${base}/${number}`);
      // below the broker's receive maximum, which MQTT.js does not heed
      for (let start = 0; start < topics.length; start += 1000) {
        await Promise.all(topics.slice(start, start + 1000).map((topic) => publisher.publish(topic, topic, { qos: 1 })));
      }
      await publisher.publish(`${base}/end`, `${base}/end`, { qos: 1 });
      const got = await subscriber.receive(topics.length + 1);
      for (const message of got) assert.equal(message.payload.toString(), message.topic);
      assert.equal(got.pop().topic, `${base}/end`);
      assert.deepEqual(new Set(payloads(got)), new Set(topics));
    });

    test('retained messages are kept and cleared', async () => {
      const topic = unique('t/');
      const publisher = await join(version);
      await publisher.publish(topic, 'kept', { qos: 1, retain: true });
      const first = await join(version);
      await first.subscribe(topic, { qos: 1 });
      assert.equal((await first.receive(1))[0].packet.retain, true);
      await publisher.publish(topic, '', { qos: 1, retain: true });
      const second = await join(version);
      await second.subscribe(topic, { qos: 1 });
      await publisher.publish(topic, 'live', { qos: 1 });
      const [message] = await second.receive(1);
      assert.equal(message.payload.toString(), 'live');
      assert.equal(message.packet.retain, false);
    });

    test('a dropped connection sends its will', async () => {
      const topic = unique('t/');
      const watcher = await join(version);
      await watcher.subscribe(topic, { qos: 1 });
      const dying = await join(version, { will: { topic, payload: Buffer.from('gone'), qos: 1, retain: false } });
      dying.drop();
      assert.equal((await watcher.receive(1))[0].payload.toString(), 'gone');
    });

    for (const qos of [1, 2]) {
      test(`a session keeps what comes at QoS ${qos} while its client is away`, async () => {
        const topic = unique('t/');
        const clientId = unique('j');
        const publisher = await join(version);
        const sleeper = await join(version, { clientId, ...kept });
        assert.equal(sleeper.connack.sessionPresent, false);
        await sleeper.subscribe(topic, { qos });
        await sleeper.end();
        const numbers = upTo(50);
        for (const number of numbers) await publisher.publish(topic, number, { qos });
        const woken = await join(version, { clientId, ...kept });
        if (version.name !== '3.1') assert.equal(woken.connack.sessionPresent, true);
        await publisher.publish(topic, 'end', { qos });
        const got = await woken.receive(numbers.length + 1);
        assert.deepEqual(payloads(got), [...numbers, 'end']);
        for (const message of got) assert.equal(message.packet.qos, qos);
      });
    }

    test('a second connection takes over', async () => {
      const topic = unique('t/');
      const clientId = unique('j');
      const old = await join(version, { clientId });
      const ended = old.closed();
      const heir = await join(version, { clientId });
      assert.equal(await ended, five ? 0x8e : null);
      // the end of the old one must not take the new one with it
      await heir.subscribe(topic, { qos: 1 });
      await heir.publish(topic, 'mine', { qos: 1 });
      assert.deepEqual(payloads(await heir.receive(1)), ['mine']);
    });

    test('a shared group gets each message once', async () => {
      const topic = unique('t/');
      // the fence comes on the same path behind the messages
      const fence = unique('fence/');
      const members = [await join(version), await join(version), await join(version)];
      for (const member of members) {
        await member.subscribe(`$share/g/${topic}`, { qos: 1 });
        await member.subscribe(fence, { qos: 1 });
      }
      const publisher = await join(version);
      const numbers = upTo(60);
      for (const number of numbers) await publisher.publish(topic, number, { qos: 1 });
      await publisher.publish(fence, 'end', { qos: 1 });
      const got = [];
      for (const member of members) {
        const before = got.length;
        for (;;) {
          const [message] = await member.receive(1);
          if (message.topic === fence) break;
          got.push(message.payload.toString());
        }
        assert.ok(got.length > before, 'a member got nothing');
      }
      // of each number one: neither lost nor twice
      assert.deepEqual(got.sort((a, b) => a - b), numbers);
    });

    test('half a megabyte both ways', async () => {
      const topic = unique('t/');
      const client = await join(version);
      await client.subscribe(topic, { qos: 1 });
      const payload = Buffer.alloc(500_000, 'abcdefg');
      await client.publish(topic, payload, { qos: 1 });
      assert.ok((await client.receive(1))[0].payload.equals(payload));
    });

    for (const qos of [0, 1, 2]) {
      for (const mebibytes of [1, 10]) {
        test(`${mebibytes} MiB both ways at QoS ${qos}`, async () => {
          const topic = unique('t/');
          const subscriber = await join(version, {}, roomy);
          const publisher = await join(version, {}, roomy);
          await subscriber.subscribe(topic, { qos });
          // no block of it is like another, so that a misplaced one shows
          const payload = randomBytes(mebibytes << 20);
          await publisher.publish(topic, payload, { qos });
          const [message] = await subscriber.receive(1, LARGE_DEADLINE);
          assert.equal(message.packet.qos, qos);
          assert.equal(message.payload.length, payload.length);
          assert.equal(digest(message.payload), digest(payload));
        });
      }
    }
  });
}

describe('MQTT 5.0 properties', { concurrency: false }, () => {
  const version = VERSIONS[2];

  test('pass through', async () => {
    const topic = unique('t/');
    const client = await join(version);
    await client.subscribe(topic, { qos: 1, properties: { subscriptionIdentifier: 321 } });
    const properties = {
      payloadFormatIndicator: true,
      messageExpiryInterval: 1000,
      contentType: 'text/plain',
      responseTopic: 'answer',
      correlationData: Buffer.from([0, 255]),
      userProperties: { a: ['1', '2'], b: '3' },
    };
    await client.publish(topic, 'x', { qos: 1, properties });
    const got = (await client.receive(1))[0].packet.properties;
    assert.equal(got.payloadFormatIndicator, true);
    assert.ok(got.messageExpiryInterval > 990 && got.messageExpiryInterval <= 1000);
    assert.equal(got.contentType, 'text/plain');
    assert.equal(got.responseTopic, 'answer');
    assert.ok(got.correlationData.equals(properties.correlationData));
    assert.deepEqual({ ...got.userProperties }, properties.userProperties);
    assert.equal(got.subscriptionIdentifier, 321);
  });

  test('no-local, retain-as-published and retain handling', async () => {
    const topic = unique('t/');
    const client = await join(version);
    const other = await join(version);
    await other.publish(topic, 'kept', { qos: 1, retain: true });
    await client.subscribe(topic, { qos: 1, nl: true, rap: true, rh: 2 });
    await client.publish(topic, 'own', { qos: 1 });
    await other.publish(topic, 'other', { qos: 1, retain: true });
    const [message] = await client.receive(1);
    assert.equal(message.payload.toString(), 'other');
    assert.equal(message.packet.retain, true);
  });

  test('topic aliases both ways', async () => {
    const client = await join(version, { autoAssignTopicAlias: true, properties: { topicAliasMaximum: 5 } });
    const aliased = { packetsend: [], packetreceive: [] };
    for (const [event, seen] of Object.entries(aliased)) {
      client.client.on(event, ({ cmd, topic, properties }) => {
        if (cmd === 'publish' && properties?.topicAlias) seen.push({ topic, alias: properties.topicAlias });
      });
    }
    const base = unique('t/');
    await client.subscribe(`${base}/#`, { qos: 1 });
    const topics = Array.from({ length: 30 }, (_, number) => `${base}/${number % 7}`);
    for (const topic of topics) await client.publish(topic, topic, { qos: 1 });
    const got = await client.receive(topics.length);
    assert.deepEqual(got.map((message) => message.topic), topics);
    assert.deepEqual(payloads(got), topics);
    for (const [event, seen] of Object.entries(aliased)) {
      // an alias is set with its topic and used without it
      assert.ok(seen.some(({ topic }) => topic !== ''), `${event}: no alias was set`);
      assert.ok(seen.some(({ topic }) => topic === ''), `${event}: no alias was used`);
    }
    for (const { alias } of aliased.packetreceive) assert.ok(alias <= 5, `alias ${alias} of at most 5`);
  });

  test('overlapping subscriptions deliver once, with both identifiers', async () => {
    const base = unique('t/');
    const client = await join(version);
    await client.subscribe(`${base}/+`, { qos: 1, properties: { subscriptionIdentifier: 7 } });
    await client.subscribe(`${base}/#`, { qos: 2, properties: { subscriptionIdentifier: 9 } });
    for (const payload of ['x', 'end']) await client.publish(`${base}/a`, payload, { qos: 2 });
    const got = await client.receive(2);
    assert.deepEqual(payloads(got), ['x', 'end']);
    for (const { packet } of got) {
      assert.equal(packet.qos, 2);
      assert.deepEqual([packet.properties.subscriptionIdentifier].flat().sort(), [7, 9]);
    }
  });

  test('messages age, and expire', async () => {
    const [expiring, aging] = [unique('t/'), unique('t/')];
    const session = { clientId: unique('j'), clean: false, properties: { sessionExpiryInterval: 600 } };
    const sleeper = await join(version, session);
    await sleeper.subscribe([expiring, aging], { qos: 1 });
    await sleeper.end();
    const client = await join(version);
    const expireIn = (messageExpiryInterval) => ({ qos: 1, retain: true, properties: { messageExpiryInterval } });
    await client.publish(expiring, 'gone', expireIn(1));
    await client.publish(aging, 'old', expireIn(600));
    // the retained one is the clock: two off, however they are rounded, are more than the second of the other
    const deadline = Date.now() + 10_000;
    for (let left = 600; left > 598; ) {
      assert.ok(Date.now() < deadline, `${left} of 600 seconds left after 10`);
      await client.subscribe(aging, { qos: 1 });
      const [message] = await client.receive(1);
      assert.ok(message.packet.properties.messageExpiryInterval <= left);
      left = message.packet.properties.messageExpiryInterval;
    }
    await client.subscribe(expiring, { qos: 1 });
    const woken = await join(version, session);
    await client.publish(expiring, 'end', { qos: 1 });
    assert.deepEqual(payloads(await client.receive(1)), ['end']);
    const [old, end] = await woken.receive(2);
    assert.deepEqual(payloads([old, end]), ['old', 'end']);
    const left = old.packet.properties.messageExpiryInterval;
    assert.ok(left > 500 && left <= 598, `${left} of 600 seconds left`);
  });

  test('an empty client id gets one assigned', async () => {
    const [first, second] = [await join(version, { clientId: '' }), await join(version, { clientId: '' })];
    const [one, other] = [first, second].map(({ connack }) => connack.properties.assignedClientIdentifier);
    assert.ok(one && other);
    assert.notEqual(one, other);
    assert.equal((await join(version)).connack.properties?.assignedClientIdentifier, undefined);
    // it is the session's name: whoever comes with it takes over
    const ended = first.closed();
    await join(version, { clientId: one });
    assert.equal(await ended, 0x8e);
  });

  for (const qos of [1, 2]) {
    test(`a receive maximum of 1 at QoS ${qos}`, async () => {
      const topic = unique('t/');
      const subscriber = await join(version, { properties: { receiveMaximum: 1 } });
      const publisher = await join(version);
      let most = 0;
      let unfinished = 0;
      subscriber.client.on('packetreceive', ({ cmd }) => {
        if (cmd === 'publish') most = Math.max(most, (unfinished += 1));
      });
      subscriber.client.on('packetsend', ({ cmd }) => {
        if (cmd === 'puback' || cmd === 'pubcomp') unfinished -= 1;
      });
      await subscriber.subscribe(topic, { qos });
      const numbers = many(500);
      await Promise.all(numbers.map((number) => publisher.publish(topic, number, { qos })));
      await publisher.publish(topic, 'end', { qos });
      assert.deepEqual(payloads(await subscriber.receive(numbers.length + 1)), [...numbers, 'end']);
      assert.equal(most, 1);
    });
  }

  test('reason codes reach the application', async () => {
    const client = await join(version);
    // 0x10, no matching subscribers, is no error
    await client.publish(unique('nobody/'), 'x', { qos: 1 });
    await assert.rejects(client.publish('$SYS/x', 'x', { qos: 1 }), (error) => error.code === 0x87);
  });
});
