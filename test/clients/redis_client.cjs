// node-redis as applications use it: promises, automatic pipelining, isolated
// connections, messages, scripts, both protocol versions.
'use strict';
const assert = require('node:assert');
const fs = require('node:fs');
const { createClient, defineScript, WatchError } = require('redis');

const where = JSON.parse(fs.readFileSync(process.env.FOURNINES_CREDENTIALS, 'utf8')).redis;
const run = Math.random().toString(36).slice(2, 10);
const key = (name) => `${run}:${name}`;

const scripts = {
  add: defineScript({
    NUMBER_OF_KEYS: 1,
    SCRIPT: "return redis.call('INCRBY', KEYS[1], ARGV[1])",
    parseCommand(parser, k, n) { parser.pushKey(k); parser.push(String(n)); },
    transformReply: undefined,
  }),
};

function client(database, RESP) {
  const c = createClient({
    socket: { host: where.host, port: where.port }, username: where.user, password: where.password, database, RESP, scripts,
    unstableResp3: true, // XREADGROUP
  });
  c.on('error', (e) => { throw e; });
  return c.connect();
}

async function types(r) {
  assert.strictEqual(await r.set(key('s'), 'v', { EX: 100 }), 'OK');
  assert.strictEqual(await r.get(key('s')), 'v');
  assert.strictEqual(await r.set(key('s'), 'w', { NX: true }), null);
  // Automatic pipelining: all of these leave at once, over many slots.
  const all = Array.from({ length: 1000 }, (_, i) => i);
  assert.deepStrictEqual(new Set(await Promise.all(all.map((i) => r.set(key(`p${i}`), String(i))))), new Set(['OK']));
  assert.deepStrictEqual(await Promise.all(all.map((i) => r.get(key(`p${i}`)))), all.map(String));
  assert.deepStrictEqual(await r.mGet(all.map((i) => key(`p${i}`))), all.map(String));
  const found = new Set();
  for await (const page of r.scanIterator({ MATCH: `${run}:p*`, COUNT: 100 })) {
    for (const k of [].concat(page)) found.add(k);
  }
  assert.strictEqual(found.size, 1000);
  assert.strictEqual(await r.del([...found]), 1000);
  // Types.
  assert.strictEqual(await r.hSet(key('h'), { a: '1', b: '2' }), 2);
  assert.deepStrictEqual({ ...(await r.hGetAll(key('h'))) }, { a: '1', b: '2' });
  await r.zAdd(key('z'), [{ score: 1, value: 'a' }, { score: 2.5, value: 'b' }]);
  assert.deepStrictEqual((await r.zRangeWithScores(key('z'), 0, -1)).map((m) => [m.value, m.score]), [['a', 1], ['b', 2.5]]);
  assert.deepStrictEqual((await r.zPopMax(key('z'))).value, 'b');
  assert.strictEqual(await r.rPush(key('l'), ['1', '2', '3']), 3);
  assert.deepStrictEqual(await r.lRange(key('l'), 0, -1), ['1', '2', '3']);
  const id = await r.xAdd(key('x'), '*', { f: 'v' });
  await r.xGroupCreate(key('x'), 'g', '0');
  const read = await r.xReadGroup('g', 'c', { key: key('x'), id: '>' }, { COUNT: 1, BLOCK: 1000 });
  assert.ok(JSON.stringify(read).includes(id));
  assert.strictEqual(await r.xAck(key('x'), 'g', id), 1);
  // Transactions, with and without a change behind their back.
  assert.deepStrictEqual(await r.multi().set(`{${run}}a`, '1').incr(`{${run}}a`).get(`{${run}}a`).exec(), ['OK', 2, '2']);
  const other = r.duplicate();
  other.on('error', (e) => { throw e; });
  await other.connect();
  await r.watch(`{${run}}a`);
  await other.set(`{${run}}a`, '9');
  await assert.rejects(r.multi().set(`{${run}}a`, 'mine').exec(), WatchError);
  assert.strictEqual(await r.get(`{${run}}a`), '9');
  // Scripts.
  assert.strictEqual(Number(await r.add(key('lua'), 2)), 2);
  await r.scriptFlush();
  assert.strictEqual(Number(await r.add(key('lua'), 3)), 5);
  // A blocking pop beside other commands.
  const pop = other.brPop([`{${run}}q1`, `{${run}}q2`], 20);
  await r.lPush(`{${run}}q2`, 'job');
  assert.deepStrictEqual({ ...(await pop) }, { key: `{${run}}q2`, element: 'job' });
  // Messages.
  const subscriber = r.duplicate();
  subscriber.on('error', (e) => { throw e; });
  await subscriber.connect();
  const got = [];
  let enough;
  const all200 = new Promise((resolve) => { enough = resolve; });
  const listener = (message) => { got.push(message); if (got.length === 200) enough(); };
  await subscriber.subscribe(key('news'), listener);
  await subscriber.pSubscribe(`${run}:n*s`, listener);
  for (let i = 0; i < 100; i++) await r.publish(key('news'), String(i));
  await all200;
  assert.deepStrictEqual([...new Set(got)], Array.from({ length: 100 }, (_, i) => String(i)));
  await subscriber.unsubscribe(key('news'));
  await subscriber.pUnsubscribe(`${run}:n*s`);
  assert.strictEqual(String(await subscriber.ping()), 'PONG');
  // Errors name their reason.
  await assert.rejects(r.sendCommand(['CLUSTER', 'NODES']), /standalone/);
  await assert.rejects(r.lPush(key('s'), 'x'), /WRONGTYPE/);
  for (const c of [other, subscriber]) await c.close();
  for await (const page of r.scanIterator({ MATCH: `*${run}*` })) {
    for (const k of [].concat(page)) await r.unlink(k);
  }
}

(async () => {
  for (const RESP of [2, 3]) {
    for (const database of [0, 1]) {
      const r = await client(database, RESP);
      await types(r);
      await r.close();
    }
  }
  console.log('ok');
})().catch((e) => { console.error(e); process.exit(1); });
