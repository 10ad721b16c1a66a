// SPDX-License-Identifier: Apache-2.0
//! Routes and who may use them, without sockets.

use std::net::SocketAddr;

use axum::Extension;
use axum::body::{Body, to_bytes};
use axum::http::HeaderMap;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;

use super::access::Caller;
use super::*;
use crate::panel::tests::{Rig, run};
use crate::settings::{Address, Host, HttpSettings};

pub(super) fn sources(rig: &Rig) -> Arc<Sources> {
    Arc::new(Sources {
        panel: rig.panel.clone(),
        log_lines_dropped: Box::new(|| 0),
        store: None,
        evicted: AtomicU64::new(0),
        cluster: None,
    })
}

fn access(host: Host) -> Access {
    Access::new(&HttpSettings {
        address: Address { host, port: 8080 },
        is_named: true,
    })
}

/// An interface and the shards behind it.
struct Interface {
    rig: Rig,
    service: Router,
}

impl Interface {
    fn new(host: Host) -> Self {
        let rig = Rig::new(2);
        let service = router(sources(&rig), access(host));
        Self { rig, service }
    }

    async fn ask(&self, caller: &str, request: Request) -> Answer {
        let caller: SocketAddr = caller.parse().expect("an address");
        let service = self.service.clone().layer(Extension(Caller(caller)));
        let service = TowerToHyperService::new(service);
        let answers = async {
            self.rig.answer(0, 7);
            self.rig.answer(1, 7);
        };
        let (response, ()) = tokio::join!(service.call(request), answers);
        let response = response.expect("a router always answers");
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.expect("a whole body");
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: String::from_utf8(body.to_vec()).expect("text"),
        }
    }

    async fn get(&self, caller: &str, host: &str, path: &str) -> Answer {
        self.ask(caller, request("GET", host, path)).await
    }
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("JSON: {:?}", self.body))
    }

    /// The detail of an error, which is JSON with exactly two fields.
    fn detail(&self) -> String {
        let body = self.json();
        assert!(body["error"].is_string(), "{body}");
        assert_eq!(body.as_object().map(serde_json::Map::len), Some(2));
        body["detail"].as_str().expect("a text").to_owned()
    }
}

fn request(method: &str, host: &str, uri: &str) -> Request {
    let builder = axum::http::Request::builder().method(method).uri(uri);
    let request = builder.header("host", host).body(Body::empty());
    request.expect("a request")
}

const LOCAL: &str = "127.0.0.1:4000";
const ELSEWHERE: &str = "192.0.2.7:4000";

#[test]
fn statistics_are_comqtts() {
    run(async {
        let interface = Interface::new(Host::All);
        for path in ["/mqtt/stats", "/api/v1/mqtt/stat/overall"] {
            let answer = interface.get(LOCAL, "127.0.0.1:8080", path).await;
            assert_eq!(answer.status, 200, "{path}");
            assert_eq!(answer.headers["content-type"], "application/json");
            let fields = answer.json();
            assert_eq!(fields["bytes_received"], 14);
            assert_eq!(fields["version"], env!("CARGO_PKG_VERSION"));
            assert_eq!(fields.as_object().map(serde_json::Map::len), Some(21));
        }
        let online = interface
            .get(LOCAL, "localhost", "/api/v1/mqtt/stat/online")
            .await;
        assert_eq!((online.status, online.body.as_str()), (200, "0"));
        let metrics = interface.get(LOCAL, "[::1]:8080", "/metrics").await;
        assert_eq!(metrics.status, 200);
        assert_eq!(metrics.headers["content-type"], metrics::CONTENT);
        assert!(metrics.body.contains("\nbytes_received 14\n"));
    });
}

#[test]
fn callers_from_elsewhere_get_only_the_health_checks() {
    run(async {
        let interface = Interface::new(Host::All);
        for caller in [ELSEWHERE, "[2001:db8::1]:4000", "[::ffff:192.0.2.7]:4000"] {
            for path in ["/healthz", "/readyz"] {
                assert_eq!(
                    interface.get(caller, "broker.example", path).await.status,
                    200
                );
            }
            for path in [
                "/metrics",
                "/mqtt/stats",
                "/api/v1/mqtt/stat/online",
                "/nowhere",
            ] {
                let answer = interface.get(caller, "127.0.0.1", path).await;
                assert_eq!(answer.status, 403, "{caller} {path}");
                assert!(answer.detail().contains("until there is a login"));
            }
        }
        // an IPv4 caller of a listener for both families
        for caller in ["[::1]:4000", "[::ffff:127.0.0.1]:4000"] {
            let answer = interface.get(caller, "127.0.0.1", "/mqtt/stats").await;
            assert_eq!(answer.status, 200, "{caller}");
        }
    });
}

#[test]
fn only_names_that_nobody_else_can_have_are_answered() {
    run(async {
        let interface = Interface::new(Host::Name("Broker.local".into()));
        for host in [
            "127.0.0.1",
            "127.0.0.1:8080",
            "192.0.2.1:80",
            "[::1]",
            "[::1]:8080",
            "localhost:8080",
            "LOCALHOST",
            "localhost.",
            "broker.local:8080",
        ] {
            let answer = interface.get(LOCAL, host, "/mqtt/stats").await;
            assert_eq!(answer.status, 200, "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil.example:8080:127.0.0.1",
            "127.0.0.1@evil.example",
            "",
        ] {
            let answer = interface.get(LOCAL, host, "/mqtt/stats").await;
            assert_eq!(answer.status, 403, "{host}");
            assert!(answer.detail().contains("Host header"));
        }
    });
}

#[test]
fn the_target_of_the_request_line_counts_before_the_host_header() {
    run(async {
        let interface = Interface::new(Host::All);
        let target = "http://evil.example/mqtt/stats";
        let answer = interface.get(LOCAL, "127.0.0.1", target).await;
        assert_eq!(answer.status, 403);
        let target = "http://127.0.0.1:8080/mqtt/stats";
        assert_eq!(interface.get(LOCAL, "127.0.0.1", target).await.status, 200);
    });
}

#[test]
fn a_request_without_a_host_or_with_two_is_refused() {
    run(async {
        let interface = Interface::new(Host::All);
        let mut none = request("GET", "x", "/mqtt/stats");
        none.headers_mut().clear();
        let mut two = request("GET", "127.0.0.1", "/mqtt/stats");
        two.headers_mut()
            .append("host", HeaderValue::from_static("evil.example"));
        for request in [none, two] {
            let answer = interface.ask(LOCAL, request).await;
            assert_eq!(answer.status, 400);
            assert_eq!(answer.detail(), "a request has one Host header");
        }
    });
}

#[test]
fn what_is_not_there_and_what_cannot_be_done_are_errors_in_json() {
    run(async {
        let interface = Interface::new(Host::All);
        let answer = interface.get(LOCAL, "127.0.0.1", "/api/v1/mqtt/stat").await;
        assert_eq!(answer.status, 404);
        assert_eq!(answer.detail(), "there is nothing at /api/v1/mqtt/stat");
        for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
            let answer = interface
                .ask(LOCAL, request(method, "127.0.0.1", "/mqtt/stats"))
                .await;
            assert_eq!(answer.status, 405);
            assert_eq!(answer.headers["allow"], "GET,HEAD");
            assert_eq!(answer.detail(), "/mqtt/stats only answers GET");
        }
        let head = interface
            .ask(LOCAL, request("HEAD", "127.0.0.1", "/mqtt/stats"))
            .await;
        assert_eq!((head.status, head.body.as_str()), (200, ""));
    });
}

#[test]
fn no_answer_may_be_read_by_other_origins_or_kept() {
    run(async {
        let interface = Interface::new(Host::All);
        for path in ["/mqtt/stats", "/nowhere", "/healthz"] {
            let answer = interface.get(LOCAL, "127.0.0.1", path).await;
            let names = answer.headers.keys().map(|name| name.as_str());
            assert_eq!(
                names
                    .filter(|name| name.starts_with("access-control"))
                    .count(),
                0
            );
            assert_eq!(answer.headers["cache-control"], "no-store");
            assert_eq!(answer.headers["x-content-type-options"], "nosniff");
        }
    });
}

#[test]
fn a_shard_that_does_not_answer_is_an_error_in_json() {
    run(async {
        let rig = Rig::new(1);
        let service = router(sources(&rig), access(Host::All));
        let caller = Caller(LOCAL.parse().expect("an address"));
        let service = TowerToHyperService::new(service.layer(Extension(caller)));
        for path in ["/mqtt/stats", "/metrics", "/healthz", "/readyz"] {
            let response = service.call(request("GET", "127.0.0.1", path)).await;
            let response = response.expect("a router always answers");
            assert_eq!(response.status().as_u16(), 503, "{path}");
            let body = to_bytes(response.into_body(), usize::MAX)
                .await
                .expect("a body");
            let body: Value = serde_json::from_slice(&body).expect("JSON");
            let detail = body["detail"].as_str().expect("a text");
            assert!(
                detail.starts_with("no answer from shard 0 within 1000 ms"),
                "{detail}"
            );
        }
    });
}

#[test]
fn a_draining_broker_is_well_but_not_ready() {
    run(async {
        let interface = Interface::new(Host::All);
        interface.rig.phase.send_replace(Phase::Draining);
        let ready = interface.get(ELSEWHERE, "broker", "/readyz").await;
        assert_eq!(ready.status, 503);
        assert!(ready.detail().contains("shutting down"));
        let health = interface.get(ELSEWHERE, "broker", "/healthz").await;
        assert_eq!(
            (health.status, health.body.as_str()),
            (200, r#"{"status":"ok"}"#)
        );
    });
}

#[test]
fn a_node_by_itself_has_no_cluster_to_tell_of() {
    run(async {
        let interface = Interface::new(Host::All);
        for path in [
            "/cluster/ms",
            "/api/v1/cluster/nodes",
            "/api/v1/cluster/stat/online",
        ] {
            let answer = interface.get(LOCAL, "127.0.0.1:8080", path).await;
            assert_eq!(answer.status, 404, "{path}");
            assert!(answer.detail().contains("--raft-bootstrap"), "{path}");
        }
    });
}
