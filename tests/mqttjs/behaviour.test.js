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
          await publisher.publish(topic, 'x', { qos: published });
          const [message] = await subscriber.receive(1);
          assert.equal(message.packet.qos, Math.min(published, granted));
          assert.equal(message.payload.toString(), 'x');
        });
      }
    }

    for (const qos of [0, 1, 2]) {
      test(`order of 2000 messages at QoS ${qos}`, async () => {
        const topic = unique('t/');
        const subscriber = await join(version);
        const publisher = await join(version);
        await subscriber.subscribe(topic, { qos });
        const numbers = Array.from({ length: 2000 }, (_, number) => String(number));
        for (const start of [0, 500, 1000, 1500]) {
          await Promise.all(numbers.slice(start, start + 500).map((number) => publisher.publish(topic, number, { qos })));
        }
        const got = await subscriber.receive(numbers.length);
        assert.deepEqual(got.map((message) => message.payload.toString()), numbers);
      });
    }

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

    test('a session keeps what comes while its client is away', async () => {
      const topic = unique('t/');
      const clientId = unique('j');
      const publisher = await join(version);
      const sleeper = await join(version, { clientId, ...kept });
      await sleeper.subscribe(topic, { qos: 1 });
      await sleeper.end();
      const numbers = Array.from({ length: 50 }, (_, number) => String(number));
      for (const number of numbers) await publisher.publish(topic, number, { qos: 1 });
      const woken = await join(version, { clientId, ...kept });
      if (version.name !== '3.1') assert.equal(woken.connack.sessionPresent, true);
      const got = await woken.receive(numbers.length);
      assert.deepEqual(got.map((message) => message.payload.toString()), numbers);
    });

    test('a second connection takes over', async () => {
      const clientId = unique('j');
      const old = await join(version, { clientId });
      const ended = old.closed();
      await join(version, { clientId });
      assert.equal(await ended, five ? 0x8e : null);
    });

    test('a shared group gets each message once', async () => {
      const topic = unique('t/');
      const members = [await join(version), await join(version), await join(version)];
      for (const member of members) await member.subscribe(`$share/g/${topic}`, { qos: 1 });
      const publisher = await join(version);
      for (let number = 0; number < 60; number += 1) await publisher.publish(topic, String(number), { qos: 1 });
      // the fence comes on the same path behind the messages
      const fence = unique('fence/');
      const got = [];
      for (const member of members) {
        await member.subscribe(fence, { qos: 1 });
      }
      await publisher.publish(fence, 'end', { qos: 1 });
      for (const member of members) {
        for (;;) {
          const [message] = await member.receive(1);
          if (message.topic === fence) break;
          got.push(Number(message.payload));
        }
      }
      assert.deepEqual(got.sort((a, b) => a - b), Array.from({ length: 60 }, (_, number) => number));
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
    const client = await join(version, { autoUseTopicAlias: true, properties: { topicAliasMaximum: 5 } });
    const base = unique('t/');
    await client.subscribe(`${base}/#`, { qos: 1 });
    const topics = Array.from({ length: 30 }, (_, number) => `${base}/${number % 7}`);
    for (const topic of topics) await client.publish(topic, topic, { qos: 1 });
    const got = await client.receive(topics.length);
    assert.deepEqual(got.map((message) => message.topic), topics);
    assert.deepEqual(got.map((message) => message.payload.toString()), topics);
  });

  test('reason codes reach the application', async () => {
    const client = await join(version);
    // 0x10, no matching subscribers, is no error
    await client.publish(unique('nobody/'), 'x', { qos: 1 });
    await assert.rejects(client.publish('$SYS/x', 'x', { qos: 1 }), (error) => error.code === 0x87);
  });
});
