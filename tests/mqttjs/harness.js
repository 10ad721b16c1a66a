// SPDX-License-Identifier: Apache-2.0
// A broker for this run and MQTT.js clients of it, each step a promise with a deadline.

import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

import mqtt from 'mqtt';

const DEADLINE = Number(process.env.CORQTT_TEST_DEADLINE ?? 10) * 1000;

export const VERSIONS = [
  { name: '3.1', options: { protocolId: 'MQIsdp', protocolVersion: 3 } },
  { name: '3.1.1', options: { protocolId: 'MQTT', protocolVersion: 4 } },
  { name: '5.0', options: { protocolId: 'MQTT', protocolVersion: 5 } },
];

export const unique = (prefix = '') => prefix + randomBytes(8).toString('hex');

export function within(promise, what, milliseconds = DEADLINE) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not within ${milliseconds} ms: ${what}`)), milliseconds);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

// Starts the broker with settings in YAML, if given, or takes the one that CORQTT_TEST_ADDRESS names.
export async function startBroker(settings = null) {
  if (process.env.CORQTT_TEST_ADDRESS) {
    const [host, port] = process.env.CORQTT_TEST_ADDRESS.split(':');
    return { host, port: Number(port), stop: async () => {} };
  }
  const directory = mkdtempSync(join(tmpdir(), 'corqtt-test-'));
  const shards = process.env.CORQTT_TEST_SHARDS ?? '1';
  const runtime = process.env.CORQTT_TEST_RUNTIME ?? 'auto';
  const flags = ['--tcp=127.0.0.1:0', `--shards=${shards}`, `--runtime=${runtime}`, '--level=info'];
  if (settings !== null) {
    const path = join(directory, 'broker.yml');
    writeFileSync(path, settings);
    flags.push('--conf', path);
  }
  const broker = spawn(process.env.CORQTT_BIN, flags, { cwd: directory, stdio: ['ignore', 'pipe', 'inherit'] });
  const exited = new Promise((resolve) => broker.once('exit', (code) => resolve(code)));
  const port = await within(
    new Promise((resolve, reject) => {
      let found;
      createInterface({ input: broker.stdout }).on('line', (line) => {
        found ??= /attached listener address=\S+:(\d+) id=tcp protocol=tcp/.exec(line)?.[1];
        if (line.includes('server started')) resolve(Number(found));
      });
      exited.then((code) => reject(new Error(`the broker exited at start with ${code}`)));
    }),
    'the broker logs `server started`',
  );
  const stop = async () => {
    broker.kill('SIGTERM');
    const code = await within(exited, 'the broker exits after SIGTERM');
    rmSync(directory, { recursive: true });
    if (code !== 0) throw new Error(`the broker exited with ${code}`);
  };
  return { host: '127.0.0.1', port, stop };
}

// A connected client that keeps what it hears in `inbox`.
export async function connect(broker, options = {}) {
  const client = mqtt.connect({
    host: broker.host,
    port: broker.port,
    clientId: unique('j'),
    reconnectPeriod: 0,
    connectTimeout: DEADLINE,
    ...options,
  });
  const inbox = [];
  let wake = () => {};
  client.on('message', (topic, payload, packet) => {
    inbox.push({ topic, payload, packet });
    wake();
  });
  // by the time of CONNACK a resumed session may already have sent its queue
  const connack = await within(
    new Promise((resolve, reject) => {
      client.once('connect', resolve);
      client.once('error', reject);
      client.once('close', () => reject(new Error('closed instead of CONNACK')));
    }),
    'CONNACK',
  );
  client.removeAllListeners('close');
  client.on('error', () => {});
  const receive = async (count) => {
    await within(
      (async () => {
        while (inbox.length < count) await new Promise((resolve) => (wake = resolve));
      })(),
      `${count} messages`,
    );
    return inbox.splice(0, count);
  };
  return {
    client,
    connack,
    inbox,
    receive,
    subscribe: (filter, options) => within(client.subscribeAsync(filter, options), `SUBACK for ${filter}`),
    publish: (topic, payload, options) => within(client.publishAsync(topic, payload, options), `${topic} acknowledged`),
    closed: () =>
      within(
        new Promise((resolve) => {
          let reason = null;
          client.on('disconnect', (packet) => (reason = packet.reasonCode));
          client.once('close', () => resolve(reason));
        }),
        'the broker closes',
      ),
    // as a dead network does
    drop: () => client.stream.destroy(),
    end: () => within(client.endAsync(), 'the client ends'),
  };
}
