// SPDX-License-Identifier: Apache-2.0
//! The cluster as this node sees it.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use corqtt_cluster::{CoreStatus, MemberStatus, Proposer};
use serde_json::{Value, json};

use super::{Failure, Sources};

/// Whether this node may trust its copy of the cluster's table now, and who leads.
pub(super) fn place(proposer: &Proposer) -> Result<Value, Failure> {
    let status = proposer.status();
    let leader = leader(&status);
    if !status.is_current() {
        let detail = match leader {
            Some(name) => format!(
                "this node's copy of the cluster's table is not current; {name} leads, as far as it knows"
            ),
            None => "this node knows of no leader; most of the cluster's voters have to be up and to reach each other".to_owned(),
        };
        return Err(Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "not ready",
            detail,
        ));
    }
    Ok(json!({"status": "ready", "lease": true, "leader": leader}))
}

/// Members: `[{name, addr, port, state, raft, ...}]`.
pub(super) async fn nodes(State(sources): State<Arc<Sources>>) -> Result<Json<Value>, Failure> {
    let status = proposer(&sources)?.status();
    let members = status.members.iter().map(|member| node(&status, member));
    Ok(Json(members.collect()))
}

/// How many clients are connected to all nodes.
pub(super) async fn online(State(sources): State<Arc<Sources>>) -> Result<Json<usize>, Failure> {
    Ok(Json(proposer(&sources)?.clients_connected()))
}

fn proposer(sources: &Sources) -> Result<&Proposer, Failure> {
    sources.cluster.as_ref().ok_or_else(|| {
        Failure::new(
            StatusCode::NOT_FOUND,
            "not found",
            "this broker is a node by itself; --members and --raft-bootstrap make a cluster",
        )
    })
}

fn leader(status: &CoreStatus) -> Option<&str> {
    let leader = status.leader?;
    let mut members = status.members.iter();
    let found = members.find(|member| member.row.node == leader)?;
    Some(&found.row.name)
}

fn node(status: &CoreStatus, member: &MemberStatus) -> Value {
    let row = &member.row;
    let state = match (row.is_dead, row.is_live) {
        (true, _) => "dead",
        (false, true) => "alive",
        // a member whose rows are not there yet
        (false, false) => "joining",
    };
    let raft = if status.leader == Some(row.node) {
        "leader"
    } else if member.votes {
        "follower"
    } else {
        "learner"
    };
    json!({
        "name": row.name.as_str(),
        "addr": member.gossip.map(|address| address.ip().to_string()),
        "port": member.gossip.map(|address| address.port()),
        "state": state,
        "raft": raft,
        "id": format!("{:016x}", row.node.0),
        "links": member.links.map(|address| address.to_string()),
        "linked": member.is_linked,
        "self": row.node == status.node,
    })
}
