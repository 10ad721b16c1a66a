// SPDX-License-Identifier: Apache-2.0
// A broker for this run and MQTT.js clients of it, each step a promise with a deadline.

import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createConnection } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

import mqtt from 'mqtt';

const DEADLINE = Number(process.env.CORQTT_TEST_DEADLINE ?? 25) * 1000;
// The same for messages of megabytes: clients take their time for these.
export const LARGE_DEADLINE = DEADLINE * 5;

// tcp, tls, mtls, ws, wss, unix, proxy1 or proxy2
const TRANSPORT = process.env.CORQTT_TEST_TRANSPORT || 'tcp';
const PROTOCOLS = { tls: 'tls', mtls: 'tls', ws: 'ws', wss: 'wss', unix: 'unix' };
const PROTOCOL = PROTOCOLS[TRANSPORT] ?? 'tcp';

// of the run, made by tests/harness/certificates.py
const certificate = (name) => join(process.env.CORQTT_TEST_CERTIFICATES, name);

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

// The block of `mqtt.listeners` for the transport of this run.
function listener(directory) {
  if (TRANSPORT === 'unix') return { kind: 'unix', address: join(directory, 'mqtt.sock') };
  const block = { kind: PROTOCOL, address: '127.0.0.1:0' };
  if (['tls', 'mtls', 'wss'].includes(TRANSPORT)) {
    block.tls = { 'server-cert': certificate('server.pem'), 'server-key': certificate('server.key') };
    if (TRANSPORT === 'mtls') block.tls['ca-cert'] = certificate('ca.pem');
  }
  if (TRANSPORT.startsWith('proxy')) block['proxy-protocol-from'] = ['127.0.0.0/8'];
  return block;
}

// A connection on which a load balancer, so to speak, has said the addresses; here they are true anyway.
async function proxied({ host, port }) {
  const socket = createConnection({ host, port, noDelay: true });
  await within(once(socket, 'connect'), 'a connection');
  const { localAddress: from, localPort, remoteAddress: to, remotePort } = socket;
  if (TRANSPORT === 'proxy1') {
    socket.write(`PROXY TCP4 ${from} ${to} ${localPort} ${remotePort}\r\n`);
  } else {
    // version 2, command PROXY, TCP over IPv4, 12 bytes of addresses
    const header = Buffer.alloc(28);
    header.write('\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c', 'latin1');
    header.set([from, to].flatMap((address) => address.split('.').map(Number)), 16);
    header.writeUInt16BE(localPort, 24);
    header.writeUInt16BE(remotePort, 26);
    socket.write(header);
  }
  return socket;
}

// What leads MQTT.js to a broker.
function way(broker) {
  const trusted = () => ({ ca: readFileSync(certificate('ca.pem')) });
  const shown = () => ({ cert: readFileSync(certificate('client.pem')), key: readFileSync(certificate('client.key')) });
  switch (TRANSPORT) {
    case 'tls':
      return { protocol: 'mqtts', ...trusted() };
    case 'mtls':
      return { protocol: 'mqtts', ...trusted(), ...shown() };
    case 'ws':
      return { protocol: 'ws', path: '/mqtt' };
    case 'wss':
      return { protocol: 'wss', path: '/mqtt', ...trusted() };
    case 'unix':
      return { protocol: 'mqtt', unixSocket: true, path: broker.path };
    default:
      return { protocol: 'mqtt' };
  }
}

// Starts the broker with settings in YAML, given as lines of the block `mqtt`, or takes the one that
// CORQTT_TEST_ADDRESS names.
export async function startBroker(settings = '') {
  if (process.env.CORQTT_TEST_ADDRESS) {
    if (TRANSPORT === 'unix') return { path: process.env.CORQTT_TEST_ADDRESS, stop: async () => {} };
    const [host, port] = process.env.CORQTT_TEST_ADDRESS.split(':');
    return { host, port: Number(port), stop: async () => {} };
  }
  // a unix socket's path has room for 107 bytes, which TMPDIR may well exceed
  const directory = mkdtempSync(join(TRANSPORT === 'unix' ? '/tmp' : tmpdir(), 'corqtt-test-'));
  const shards = process.env.CORQTT_TEST_SHARDS ?? '1';
  const runtime = process.env.CORQTT_TEST_RUNTIME ?? 'auto';
  const path = join(directory, 'broker.yml');
  // JSON is YAML
  writeFileSync(path, `mqtt:\n  http: off\n  listeners:\n    - ${JSON.stringify(listener(directory))}\n${settings}`);
  const flags = ['--conf', path, `--shards=${shards}`, `--runtime=${runtime}`, '--level=info'];
  const broker = spawn(process.env.CORQTT_BIN, flags, { cwd: directory, stdio: ['ignore', 'pipe', 'inherit'] });
  const exited = new Promise((resolve) => broker.once('exit', (code) => resolve(code)));
  const address = await within(
    new Promise((resolve, reject) => {
      let found;
      createInterface({ input: broker.stdout }).on('line', (line) => {
        found ??= new RegExp(`attached listener address=(\\S+) id=\\S+ protocol=${PROTOCOL}$`).exec(line)?.[1];
        if (line.includes('server started')) resolve(found);
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
  if (TRANSPORT === 'unix') return { path: address, stop };
  return { host: '127.0.0.1', port: Number(address.split(':')[1]), stop };
}

// A connected client that keeps what it hears in `inbox`.
export async function connect(broker, options = {}) {
  const all = {
    host: broker.host,
    port: broker.port,
    clientId: unique('j'),
    reconnectPeriod: 0,
    connectTimeout: DEADLINE,
    ...way(broker),
    ...options,
  };
  let client;
  if (TRANSPORT.startsWith('proxy')) {
    const socket = await proxied(broker);
    client = new mqtt.MqttClient(() => socket, all);
  } else {
    client = mqtt.connect(all);
  }
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
  const receive = async (count, milliseconds) => {
    await within(
      (async () => {
        while (inbox.length < count) await new Promise((resolve) => (wake = resolve));
      })(),
      `${count} messages`,
      milliseconds,
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
