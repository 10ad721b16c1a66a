// SPDX-License-Identifier: Apache-2.0
//! redis: a hash per table, and beside it a sorted set of its keys, since a hash has no order.
//!
//! ```text
//!   <prefix>:<node>:writer        start, commit, bytes      who writes, and how far that one came
//!   <prefix>:<node>:<table>       key -> value
//!   <prefix>:<node>:<table>:keys  every key, with score 0
//! ```
//!
//! * A commit is one script: all of it or nothing. It is refused for a writer of a lower epoch (`start`), so that a
//!   process which was taken for dead changes nothing any more. A number that is not above the last one is a repeat: a
//!   commit whose answer was lost is sent again, and what an old connection brings late changes nothing.
//! * What "kept" means beyond that is up to redis: `appendonly` and `appendfsync`.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::time::Duration;

use redis::{
    Client, Connection, ConnectionLike, ErrorKind, InfoDict, IntoConnectionInfo, RedisError,
    Script, ServerErrorKind, cmd,
};

use super::engine::{Each, Engine, EngineError, Result, Row, Table};
use crate::settings::RedisSettings;

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer may take: of a script with everything that waited, on a redis that writes its file anew.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Rows of one page of a scan at most.
const PAGE_ROWS: usize = 1_000;
/// A page ends with the row that brings it to so many bytes.
const PAGE_BYTES: usize = 1 << 20;
/// An argument of a commit ends with the row that brings it to so many bytes: redis takes 512 MiB for one.
const PART_BYTES: usize = 64 << 20;

/// `KEYS`: the writer's, then hash and keys of each table. `ARGV`: epoch, number of the commit, rows in one or more
/// MessagePack arrays of table, key and value or false. Answers what all rows take (bytes), or false if the epoch is over.
const COMMIT: &str = r"
local held = redis.call('HMGET', KEYS[1], 'start', 'commit', 'bytes')
if held[1] ~= ARGV[1] then return false end
if tonumber(held[2] or '0') >= tonumber(ARGV[2]) then return held[3] end
local bytes = tonumber(held[3] or '0')
for part = 3, #ARGV do
  local rows = cmsgpack.unpack(ARGV[part])
  for at = 1, #rows, 3 do
    local hash, keys = KEYS[2 * rows[at] + 2], KEYS[2 * rows[at] + 3]
    local key, value = rows[at + 1], rows[at + 2]
    local old = redis.call('HSTRLEN', hash, key)
    if old > 0 then bytes = bytes - #key - old end
    if value then
      redis.call('HSET', hash, key, value)
      bytes = bytes + #key + #value
      if old == 0 then redis.call('ZADD', keys, 0, key) end
    else
      redis.call('HDEL', hash, key)
      redis.call('ZREM', keys, key)
    end
  end
end
bytes = string.format('%.0f', bytes)
redis.call('HSET', KEYS[1], 'commit', ARGV[2], 'bytes', bytes)
return bytes
";

/// `KEYS`: hash and keys of a table. `ARGV`: the first key in the form of ZRANGEBYLEX, rows and bytes of a page at most.
/// Answers keys and values in turn.
const PAGE: &str = r"
local found, bytes = {}, 0
for _, key in ipairs(redis.call('ZRANGEBYLEX', KEYS[2], ARGV[1], '+', 'LIMIT', 0, ARGV[2])) do
  local value = redis.call('HGET', KEYS[1], key) or ''
  found[#found + 1] = key
  found[#found + 1] = value
  bytes = bytes + #key + #value
  if bytes >= tonumber(ARGV[3]) then break end
end
return found
";

type Fetched = HashMap<(Table, Vec<u8>), Option<Vec<u8>>>;

pub(crate) struct Redis {
    client: Client,
    /// Where it is, without what is secret.
    place: String,
    /// All of this node's keys begin so.
    base: String,
    /// The names of hash and keys of each table.
    tables: [(String, String); Table::ALL.len()],
    commit: Script,
    page: Script,
    /// `None` after an error.
    link: RefCell<Option<Connection>>,
    /// The epoch of this writer; 0: it only reads.
    start: u64,
    /// Commits that were answered, or refused.
    commits: u64,
    /// The last one was refused: there was no room.
    no_room: bool,
    used_bytes: Cell<u64>,
    fetched: RefCell<Fetched>,
}

impl From<RedisError> for EngineError {
    fn from(error: RedisError) -> Self {
        let text = error.to_string();
        // older ones say it in the text of a script's error
        let says = |code| error.code() == Some(code) || text.contains(&format!("{code} "));
        match error.kind() {
            _ if says("OOM") || says("MISCONF") => Self::Full(text),
            ErrorKind::InvalidClientConfig
            | ErrorKind::Client
            | ErrorKind::UnexpectedReturnType => Self::Broken(text),
            ErrorKind::Server(ServerErrorKind::ResponseError)
                if text.contains("WRONGTYPE") || text.contains("user_script") =>
            {
                Self::Broken(text)
            }
            _ => Self::Away(text),
        }
    }
}

/// Where a redis of these settings is, for people.
pub(crate) fn place(settings: &RedisSettings) -> String {
    match client(settings) {
        Ok(client) => {
            let info = client.get_connection_info();
            format!(
                "redis at {}, database {}",
                info.addr(),
                info.redis_settings().db()
            )
        }
        Err(_) => "redis".to_owned(),
    }
}

fn client(settings: &RedisSettings) -> redis::RedisResult<Client> {
    let address = settings.address.expose();
    let is_url = address.contains("://");
    let info = if is_url {
        address.into_connection_info()?
    } else {
        format!("redis://{address}").into_connection_info()?
    };
    let mut how = info.redis_settings().clone();
    // what a URL names itself counts
    if how.username().is_none()
        && let Some(username) = &settings.username
    {
        how = how.set_username(username);
    }
    if how.password().is_none()
        && let Some(password) = &settings.password
    {
        how = how.set_password(password.expose());
    }
    if how.db() == 0 {
        how = how.set_db(i64::from(settings.database));
    }
    let tcp = info.tcp_settings().clone().set_nodelay(true);
    Client::open(info.set_redis_settings(how).set_tcp_settings(tcp))
}

impl Redis {
    /// Connects, and takes the store of that node over from whoever wrote to it, unless it is only read.
    pub(crate) fn open(settings: &RedisSettings, node: &str, writes: bool) -> Result<Self> {
        let base = format!("{}:{node}", settings.prefix);
        let names = |table: Table| {
            let hash = format!("{base}:{}", table.name());
            let keys = format!("{hash}:keys");
            (hash, keys)
        };
        let mut redis = Self {
            client: client(settings)?,
            place: place(settings),
            tables: Table::ALL.map(names),
            base,
            commit: Script::new(COMMIT),
            page: Script::new(PAGE),
            link: RefCell::new(None),
            start: 0,
            commits: 0,
            no_room: false,
            used_bytes: Cell::new(0),
            fetched: RefCell::default(),
        };
        redis.connect()?;
        redis.warn_of_loss();
        let writer = redis.writer();
        if writes {
            // the numbers of commits begin anew with each epoch
            let mut take_over = ::redis::pipe();
            take_over
                .atomic()
                .cmd("HINCRBY")
                .arg(&writer)
                .arg("start")
                .arg(1);
            take_over.cmd("HDEL").arg(&writer).arg("commit").ignore();
            (redis.start,) = redis.ask(|link| take_over.query(link))?;
        }
        let bytes: Option<u64> =
            redis.ask(|link| cmd("HGET").arg(&writer).arg("bytes").query(link))?;
        redis.used_bytes.set(bytes.unwrap_or(0));
        Ok(redis)
    }

    fn connect(&self) -> Result<()> {
        log::info!(place = self.place; "connecting to redis service");
        let mut link = self.client.get_connection_with_timeout(CONNECT_TIMEOUT)?;
        link.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        link.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        // who does not know the password is told so for a small command only; one who may not ask has shown it
        if let Err(error) = cmd("PING").query::<String>(&mut link)
            && error.to_string().contains("NOAUTH")
        {
            return Err(error.into());
        }
        *self.link.borrow_mut() = Some(link);
        log::info!(place = self.place; "connected to redis service");
        Ok(())
    }

    /// What is acknowledged is as safe as redis makes it.
    fn warn_of_loss(&self) {
        // it may be forbidden to ask
        let answer = self.ask(|link| {
            cmd("CONFIG")
                .arg("GET")
                .arg("appendonly")
                .query::<HashMap<String, String>>(link)
        });
        if let Ok(settings) = answer
            && settings
                .get("appendonly")
                .is_some_and(|value| value == "no")
        {
            log::warn!(place = self.place; "redis has no append-only file: what is acknowledged is lost when it ends; set appendonly yes there, and appendfsync always for what a power cut may not take either");
        }
    }

    fn writer(&self) -> String {
        format!("{}:writer", self.base)
    }

    fn hash(&self, table: Table) -> &str {
        &self.tables[table as usize].0
    }

    fn keys(&self, table: Table) -> &str {
        &self.tables[table as usize].1
    }

    /// Asks redis. A connection that failed is not used again: an answer may still be on its way.
    fn ask<T>(&self, question: impl FnOnce(&mut Connection) -> redis::RedisResult<T>) -> Result<T> {
        let mut link = self.link.borrow_mut();
        let Some(open) = link.as_mut() else {
            return Err(EngineError::Away(format!(
                "{} is not connected",
                self.place
            )));
        };
        let answer = question(open);
        if let Err(error) = &answer
            && (error.is_unrecoverable_error() || error.is_timeout() || !open.is_open())
        {
            *link = None;
        }
        Ok(answer?)
    }
}

#[cfg(test)]
impl Redis {
    /// As if the connection had broken between the last commits and their answers.
    pub(crate) fn lose_answers(&mut self, count: u64) {
        self.commits -= count;
        *self.link.get_mut() = None;
    }
}

impl Engine for Redis {
    fn ready(&mut self) -> Result<bool> {
        if self.link.get_mut().is_none() {
            self.connect()?;
        }
        // nothing has to be read again: what was sent is sent once more
        Ok(false)
    }

    fn room(&self) -> Result<()> {
        if !self.no_room {
            return Ok(());
        }
        // who may not ask finds out with the next commit
        let memory = self.ask(|link| cmd("INFO").arg("memory").query::<InfoDict>(link));
        let memory = memory.ok();
        let number = |name| memory.as_ref()?.get::<u64>(name);
        match (number("used_memory"), number("maxmemory")) {
            (Some(used), Some(limit)) if limit > 0 && used >= limit => Err(EngineError::Full(
                format!("redis has {used} bytes, its maxmemory is {limit}"),
            )),
            _ => Ok(()),
        }
    }

    fn commit(&mut self, rows: &mut dyn Iterator<Item = Row<'_>>, _durable: bool) -> Result<()> {
        self.fetched.get_mut().clear();
        let mut packed = Packed::default();
        if self.no_room {
            // what gives room back has to be the first, or redis refuses it with the rest
            let rows: Vec<Row<'_>> = rows.collect();
            let (removed, set): (Vec<_>, Vec<_>) =
                rows.into_iter().partition(|row| row.2.is_none());
            removed
                .into_iter()
                .chain(set)
                .for_each(|row| packed.push(row));
        } else {
            rows.for_each(|row| packed.push(row));
        }
        let parts = packed.finish();
        if parts.is_empty() {
            return Ok(());
        }
        let mut call = self.commit.key(self.writer());
        for table in Table::ALL {
            call.key(self.hash(table)).key(self.keys(table));
        }
        call.arg(self.start).arg(self.commits + 1);
        for part in parts {
            call.arg(part);
        }
        let answer = self.ask(|link| call.invoke::<Option<u64>>(link));
        self.no_room = matches!(answer, Err(EngineError::Full(_)));
        if self.no_room {
            // what is sent instead may be something else, and an old connection may still bring this
            self.commits += 1;
        }
        match answer? {
            Some(bytes) => {
                self.commits += 1;
                self.used_bytes.set(bytes);
                Ok(())
            }
            None => Err(EngineError::Broken(format!(
                "another process has taken over {}* in {}; give each node its own --node-name or redis.prefix",
                self.base, self.place
            ))),
        }
    }

    fn sync(&mut self) -> Result<()> {
        Ok(())
    }

    fn always_syncs(&self) -> bool {
        false
    }

    fn fetch(&self, keys: Vec<(Table, Vec<u8>)>) -> Result<()> {
        let mut fetched = self.fetched.borrow_mut();
        fetched.clear();
        if keys.is_empty() {
            return Ok(());
        }
        let mut pipe = ::redis::pipe();
        for (table, key) in &keys {
            pipe.cmd("HGET").arg(self.hash(*table)).arg(key);
        }
        let values: Vec<Option<Vec<u8>>> = self.ask(|link| pipe.query(link))?;
        fetched.extend(keys.into_iter().zip(values));
        Ok(())
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let fetched = self.fetched.borrow();
        if !fetched.is_empty()
            && let Some(value) = fetched.get(&(table, key.to_vec()))
        {
            return Ok(value.clone());
        }
        self.ask(|link| cmd("HGET").arg(self.hash(table)).arg(key).query(link))
    }

    fn scan(&self, table: Table, from: &[u8], each: Each<'_>) -> Result<()> {
        let mut from = [b"[", from].concat();
        loop {
            let mut call = self.page.key(self.hash(table));
            call.key(self.keys(table))
                .arg(&from)
                .arg(PAGE_ROWS)
                .arg(PAGE_BYTES);
            let page: Vec<Vec<u8>> = self.ask(|link| call.invoke(link))?;
            let (rows, _) = page.as_chunks::<2>();
            for [key, value] in rows {
                if each(key, value).is_break() {
                    return Ok(());
                }
            }
            let Some([last, _]) = rows.last() else {
                return Ok(());
            };
            from = [b"(", last.as_slice()].concat();
        }
    }

    fn bytes(&self) -> u64 {
        self.used_bytes.get()
    }

    fn used_bytes(&self) -> u64 {
        self.used_bytes.get()
    }

    fn tidy(&mut self) -> Result<()> {
        Ok(())
    }

    fn compact(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Rows as MessagePack arrays: `array 32`, then numbers, `str 32` and `false`.
#[derive(Default)]
struct Packed {
    parts: Vec<Vec<u8>>,
    /// Of the last part, whose length is written at the end.
    rows: u32,
}

impl Packed {
    fn push(&mut self, (table, key, value): Row<'_>) {
        if self
            .parts
            .last()
            .is_none_or(|part| part.len() >= PART_BYTES)
        {
            self.end_part();
            self.parts.push(vec![0xDD, 0, 0, 0, 0]);
        }
        let Some(part) = self.parts.last_mut() else {
            return;
        };
        // below 128: a number is itself
        part.push(table as u8);
        push_text(part, key);
        match value {
            Some(value) => push_text(part, value),
            None => part.push(0xC2),
        }
        self.rows += 1;
    }

    fn end_part(&mut self) {
        if let Some(part) = self.parts.last_mut() {
            part[1..5].copy_from_slice(&(self.rows * 3).to_be_bytes());
        }
        self.rows = 0;
    }

    fn finish(mut self) -> Vec<Vec<u8>> {
        self.end_part();
        self.parts
    }
}

fn push_text(part: &mut Vec<u8>, text: &[u8]) {
    part.push(0xDB);
    part.extend_from_slice(&(text.len() as u32).to_be_bytes());
    part.extend_from_slice(text);
}
