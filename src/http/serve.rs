// SPDX-License-Identifier: Apache-2.0
//! Connections of the HTTP interface: how many, how large their requests, and how long each may last.
//!
//! Nobody can keep the interface from others: when there are too many connections, the oldest one goes. Requests take
//! milliseconds, so that is one that only holds its place.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::Sources;
use super::access::Caller;

/// Connections at once, over all listeners.
const CONNECTIONS_MAX: usize = 256;
/// From the first moment of a connection, or from the last answer, to the end of the next request's headers.
const HEADERS_TIME_MAX: Duration = Duration::from_secs(10);
/// Request line and headers (bytes).
const HEADERS_BYTES_MAX: usize = 16 * 1024;
/// A connection is asked to end after this,
const LIFE: Duration = Duration::from_secs(60);
/// and has this much longer to take the answer that it waits for.
const LAST_ANSWER: Duration = Duration::from_secs(5);
/// How long to rest when the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts and serves until the task is dropped.
pub(crate) async fn serve(listeners: Vec<TcpListener>, app: Router, sources: Arc<Sources>) {
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    let mut failing = false;
    loop {
        match accept(&listeners).await {
            Ok((stream, caller)) => {
                if std::mem::take(&mut failing) {
                    log::info!(listener = "http"; "listener goes on");
                }
                open.retain(|connection| !connection.is_finished());
                if open.len() >= CONNECTIONS_MAX
                    && let Some(oldest) = open.pop_front()
                {
                    oldest.abort();
                    sources.evicted.fetch_add(1, Ordering::Relaxed);
                }
                // only a hint: an answer is one write
                let _ = stream.set_nodelay(true);
                let connection = tokio::spawn(connection(stream, caller, app.clone()));
                open.push_back(connection.abort_handle());
            }
            Err(error) => {
                // each connection that failed before it was accepted is an error of its own
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
                ) {
                    continue;
                }
                if !std::mem::replace(&mut failing, true) {
                    log::warn!(listener = "http", error:% = error; "listener pauses: accept failed");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The next connection of any listener.
async fn accept(listeners: &[TcpListener]) -> io::Result<(TcpStream, SocketAddr)> {
    std::future::poll_fn(|context| {
        listeners
            .iter()
            .map(|listener| listener.poll_accept(context))
            .find(std::task::Poll::is_ready)
            .unwrap_or(std::task::Poll::Pending)
    })
    .await
}

async fn connection<S>(stream: S, caller: SocketAddr, app: Router)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = TowerToHyperService::new(app.layer(Extension(Caller(caller))));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIME_MAX)
        .max_buf_size(HEADERS_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut served = pin!(served);
    // what is wrong with a connection is its caller's business, who was told if that was possible
    if timeout(LIFE, served.as_mut()).await.is_err() {
        served.as_mut().graceful_shutdown();
        let _ = timeout(LAST_ANSWER, served).await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::Instant;

    use super::*;
    use crate::http::tests::sources;
    use crate::panel::tests::{Rig, run};

    const CALLER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 4000);

    fn app() -> Router {
        Router::new().route("/", get(async || "hello"))
    }

    /// Our end of a served connection.
    fn connect(buffer_bytes: usize) -> DuplexStream {
        let (ours, theirs) = duplex(buffer_bytes);
        tokio::spawn(connection(theirs, CALLER, app()));
        ours
    }

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

    async fn answer(stream: &mut DuplexStream) -> String {
        let mut text = String::new();
        while !text.ends_with("hello") {
            let byte = stream.read_u8().await.expect("an answer");
            text.push(char::from(byte));
        }
        text
    }

    /// How long until the other side has closed.
    async fn closed_after(stream: &mut DuplexStream) -> Duration {
        let begun = Instant::now();
        // a reset ends it as well
        let _ = stream.read_to_end(&mut Vec::new()).await;
        begun.elapsed()
    }

    #[test]
    fn a_connection_serves_one_request_after_the_other() {
        run(async {
            let mut stream = connect(4096);
            for _ in 0..3 {
                stream.write_all(REQUEST).await.expect("open");
                assert!(answer(&mut stream).await.starts_with("HTTP/1.1 200 OK\r\n"));
            }
        });
    }

    #[test]
    fn half_a_request_does_not_hold_a_connection() {
        run(async {
            for sent in [&b""[..], b"GET / HTTP/1.1\r\nHost: loc"] {
                let mut stream = connect(4096);
                stream.write_all(sent).await.expect("open");
                let waited = closed_after(&mut stream).await;
                assert!(
                    waited <= HEADERS_TIME_MAX + Duration::from_secs(1),
                    "{waited:?}"
                );
            }
        });
    }

    #[test]
    fn a_byte_at_a_time_does_not_hold_a_connection() {
        run(async {
            let mut stream = connect(4096);
            let begun = Instant::now();
            while stream.write_all(b"a").await.is_ok() {
                sleep(Duration::from_secs(1)).await;
            }
            assert!(begun.elapsed() <= HEADERS_TIME_MAX + Duration::from_secs(2));
        });
    }

    #[test]
    fn idleness_after_an_answer_ends_a_connection() {
        run(async {
            let mut stream = connect(4096);
            stream.write_all(REQUEST).await.expect("open");
            answer(&mut stream).await;
            assert!(closed_after(&mut stream).await <= HEADERS_TIME_MAX + Duration::from_secs(1));
        });
    }

    #[test]
    fn an_answer_that_is_not_read_ends_a_connection() {
        run(async {
            let mut stream = connect(16);
            let begun = Instant::now();
            // the other side can neither write its answer nor read on
            while stream.write_all(REQUEST).await.is_ok() {}
            assert!(begun.elapsed() <= LIFE + LAST_ANSWER + Duration::from_secs(1));
        });
    }

    #[test]
    fn a_busy_connection_ends_after_its_life() {
        run(async {
            let mut stream = connect(4096);
            let begun = Instant::now();
            while stream.write_all(REQUEST).await.is_ok() {
                if stream.read(&mut [0; 4096]).await.unwrap_or(0) == 0 {
                    break;
                }
                sleep(Duration::from_secs(5)).await;
            }
            let life = begun.elapsed();
            assert!(
                life >= LIFE && life <= LIFE + LAST_ANSWER + Duration::from_secs(6),
                "{life:?}"
            );
        });
    }

    #[test]
    fn headers_without_end_are_refused() {
        run(async {
            let mut stream = connect(64 * 1024);
            stream
                .write_all(b"GET / HTTP/1.1\r\nA: ")
                .await
                .expect("open");
            let filler = vec![b'a'; 32 * 1024];
            // it may be refused before all was taken
            let _ = stream.write_all(&filler).await;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            assert!(
                answer.starts_with(b"HTTP/1.1 431 "),
                "{}",
                answer.escape_ascii()
            );
        });
    }

    #[test]
    fn the_oldest_connection_makes_room_for_a_new_one() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let rig = Rig::new(1);
            let sources = sources(&rig);
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
            let listener = listener.expect("a free port");
            let address = listener.local_addr().expect("bound");
            tokio::spawn(serve(vec![listener], app(), sources.clone()));
            let mut idle = Vec::new();
            for _ in 0..CONNECTIONS_MAX {
                idle.push(TcpStream::connect(address).await.expect("it listens"));
            }
            let mut asking = TcpStream::connect(address).await.expect("it listens");
            asking.write_all(REQUEST).await.expect("open");
            let mut first = [0; 15];
            asking.read_exact(&mut first).await.expect("an answer");
            assert_eq!(&first, b"HTTP/1.1 200 OK");
            // that one was the first of those that only hold their place
            assert_eq!(idle[0].read(&mut first).await.unwrap_or(0), 0);
            assert_eq!(sources.evicted.load(Ordering::Relaxed), 1);
        });
    }
}
