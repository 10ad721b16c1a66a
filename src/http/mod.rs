// SPDX-License-Identifier: Apache-2.0
//! The HTTP interface: numbers for people, dashboards and Prometheus, and whether the broker is well.
//!
//! ```text
//!  connection ─> serve: so many, so long ─> access: from where, to which name ─> a handler ─> panel ─> shards
//! ```
//!
//! Nothing here changes the broker or tells of a client. Errors are JSON: `{"error": what, "detail": why and what next}`.

mod access;
mod cluster;
mod metrics;
mod serve;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::{Request, State};
use axum::http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use corqtt_cluster::Proposer;
use serde_json::{Value, json};

use crate::numbers::Overall;
use crate::panel::{Panel, Phase, Silent};
use crate::store::StoreNumbers;

pub(crate) use access::Access;
pub(crate) use serve::serve;

/// Answered to everybody: load balancers and orchestrators ask from elsewhere.
const HEALTH: &str = "/healthz";
const READY: &str = "/readyz";

/// What handlers know.
pub(crate) struct Sources {
    pub(crate) panel: Arc<Panel>,
    /// Log lines that were dropped since start.
    pub(crate) log_lines_dropped: Box<dyn Fn() -> u64 + Send + Sync>,
    /// Of the store, if there is one that counts.
    pub(crate) store: Option<Arc<StoreNumbers>>,
    /// Connections that were closed to make room for newer ones.
    pub(crate) evicted: AtomicU64,
    /// `None`: a node by itself.
    pub(crate) cluster: Option<Proposer>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").finish_non_exhaustive()
    }
}

/// An answer that is an error.
#[derive(Debug)]
struct Failure {
    status: StatusCode,
    error: &'static str,
    detail: String,
}

impl Failure {
    fn new(status: StatusCode, error: &'static str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self {
            status,
            error,
            detail,
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = json!({"error": self.error, "detail": self.detail});
        (self.status, Json(body)).into_response()
    }
}

impl From<Silent> for Failure {
    fn from(silent: Silent) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the broker does not answer",
            format!("{silent}; if that lasts, restart it and report what its threads were doing"),
        )
    }
}

/// All routes, behind the check of who asks.
pub(crate) fn router(sources: Arc<Sources>, access: Access) -> Router {
    Router::new()
        .route("/mqtt/stats", get(overall))
        .route("/api/v1/mqtt/stat/overall", get(overall))
        .route("/api/v1/mqtt/stat/online", get(online))
        .route("/cluster/ms", get(cluster::nodes))
        .route("/api/v1/cluster/nodes", get(cluster::nodes))
        .route("/api/v1/cluster/stat/online", get(cluster::online))
        .route("/metrics", get(prometheus))
        .route(HEALTH, get(health))
        .route(READY, get(ready))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .with_state(sources)
        .layer(from_fn_with_state(Arc::new(access), access::check))
        .layer(from_fn(finish))
}

async fn overall(State(sources): State<Arc<Sources>>) -> Result<Json<Overall>, Failure> {
    Ok(Json(sources.panel.snapshot().await?.overall.clone()))
}

async fn online(State(sources): State<Arc<Sources>>) -> Result<Json<u64>, Failure> {
    Ok(Json(
        sources.panel.snapshot().await?.overall.clients_connected,
    ))
}

async fn prometheus(State(sources): State<Arc<Sources>>) -> Result<Response, Failure> {
    let snapshot = sources.panel.snapshot().await?;
    let process = metrics::OfProcess {
        log_lines_dropped: (sources.log_lines_dropped)(),
        http_evicted: sources.evicted.load(Ordering::Relaxed),
    };
    let text = metrics::text(&snapshot, process, sources.store.as_deref());
    Ok(([(CONTENT_TYPE, metrics::CONTENT)], text).into_response())
}

/// Every thread that matters answers.
async fn health(State(sources): State<Arc<Sources>>) -> Result<Json<Value>, Failure> {
    // shards end one by one in a drain, and that is as it should be
    if matches!(sources.panel.phase(), Phase::Joining | Phase::Serving) {
        sources.panel.snapshot().await?;
    }
    Ok(Json(json!({"status": "ok"})))
}

/// New clients are welcome.
async fn ready(State(sources): State<Arc<Sources>>) -> Result<Json<Value>, Failure> {
    let why = match sources.panel.phase() {
        Phase::Serving => None,
        Phase::Joining => Some("this node has no place in its cluster yet; send clients elsewhere"),
        Phase::Draining | Phase::Over => {
            Some("the broker is shutting down; send new clients elsewhere")
        }
    };
    if let Some(why) = why {
        return Err(Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "not ready",
            why,
        ));
    }
    sources.panel.snapshot().await?;
    let place = sources.cluster.as_ref().map(cluster::place).transpose()?;
    Ok(Json(place.unwrap_or_else(|| json!({"status": "ready"}))))
}

async fn not_found(request: Request) -> Failure {
    let detail = format!("there is nothing at {}", request.uri().path());
    Failure::new(StatusCode::NOT_FOUND, "not found", detail)
}

async fn wrong_method(request: Request) -> Response {
    let detail = format!("{} only answers GET", request.uri().path());
    let failure = Failure::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed", detail);
    ([(ALLOW, "GET,HEAD")], failure).into_response()
}

/// What every answer says.
async fn finish(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
