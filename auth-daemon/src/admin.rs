//! Questions of admin commands, asked through the supervisor: cache, penalties, look-ups, explanations.
//!
//! Shape: `{"ask": "cache-stats"}` and so on; answers are JSON objects made for `--json` as they are.
//! Trust: who asks could reach the admin socket, so he administers the stack; names in a question are a stranger's.
//! Never: tell a password, a stored hash or the value of a passdb field.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use auth_wire::Params;
use serde_json::{Value, json};

use crate::chain::{self, Ask, Said};
use crate::engine::Engine;
use crate::request::{PeerCredentials, Request};
use crate::userdb;

/// Answers a question; an error text is for the person who asked.
pub(crate) async fn answer(engine: &Arc<Engine>, body: &Value) -> Result<Value, String> {
    let text = |name: &str| body.get(name).and_then(Value::as_str);
    match text("ask").unwrap_or_default() {
        "cache-stats" => {
            let stats = engine.cache.stats();
            Ok(json!({
                "hits": stats.hits, "misses": stats.misses,
                "positive": stats.positive, "negative": stats.negative,
                "bytes": stats.positive_bytes + stats.negative_bytes, "max_bytes": stats.max_bytes,
            }))
        }
        "cache-flush" => {
            let users: Vec<String> = match body.get("users") {
                Some(Value::Array(list)) => {
                    list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
                }
                _ => Vec::new(),
            };
            let rules = engine.config();
            let canonical = |user: &String| rules.rules.canonical(user).unwrap_or_else(|_| user.clone());
            let users: Vec<String> = users.iter().map(canonical).collect();
            Ok(json!({ "flushed": engine.cache.flush(&users) }))
        }
        "penalty-list" => {
            // `top`: only so many, the worst, and only addresses.
            let top = body.get("top").and_then(Value::as_u64).and_then(|top| usize::try_from(top).ok());
            let list: Vec<Value> = engine
                .penalties
                .list(Instant::now())
                .into_iter()
                .filter(|entry| top.is_none() || entry.account.is_none())
                .take(top.unwrap_or(usize::MAX))
                .map(|entry| json!({ "peer": entry.peer, "account": entry.account, "count": (f64::from(entry.count) * 100.0).round() / 100.0 }))
                .collect();
            Ok(json!({ "penalties": list }))
        }
        "penalty-clear" => Ok(json!({ "cleared": engine.penalties.clear(text("peer")) })),
        "lookup" | "explain" => explain(engine, body).await,
        other => Err(format!("the authentication daemon does not know the question `{other}`")),
    }
}

/// Walks both chains for a user without a password, and says what each entry said.
async fn explain(engine: &Arc<Engine>, body: &Value) -> Result<Value, String> {
    let text = |name: &str| body.get(name).and_then(Value::as_str);
    let user = text("user").ok_or("which user?")?;
    let compiled = engine.config();
    let listener = match text("listener") {
        Some(name) => compiled.listeners.get(name),
        None => compiled.listeners.values().min_by_key(|listener| listener.name.clone()),
    };
    let listener = listener.cloned().ok_or("there is no such listener")?;
    let mut params = Params::default();
    if let Some(ip) = text("ip") {
        params.rip = Some(ip.parse::<IpAddr>().map_err(|_| format!("`{ip}` is not an address"))?);
    }
    let uid = nix::unistd::geteuid().as_raw();
    let peer = PeerCredentials { uid, gid: nix::unistd::getegid().as_raw(), pid: None };
    let service = text("service").unwrap_or("smtp").to_owned();
    let mut request = Request::new(params, service, peer, Instant::now());
    request.mechanism = text("mechanism").and_then(sasl::Name::parse);
    request.trace = Some(Vec::new());
    let mut request = match userdb::named(&compiled, request, user) {
        Ok(request) => request,
        Err(why) => {
            return Ok(json!({
                "user": user, "found": "no", "result": "refused", "reason": why.to_string(),
            }));
        }
    };
    let canonical = request.user.clone();
    let walk = chain::walk(engine, &compiled, &listener.chain, &mut request, Ask::Existence, false).await;
    let passdb = match &walk.said {
        Said::Ok => "found".to_owned(),
        Said::Expired(why) => format!("password expired ({why})"),
        Said::Mismatch(why) | Said::Unknown(why) | Said::NoScheme(why) | Said::Disabled(why) => why.clone(),
        Said::Internal(why) => format!("cannot answer: {why}"),
        Said::Next => "no passdb decides".to_owned(),
    };
    let result = (text("ask") == Some("explain")).then(|| crate::explain::result(&walk, &request));
    let found = userdb::walk(engine, &compiled, &listener, &mut request, walk.said == Said::Ok).await;
    let userdb = found.words();
    let found = crate::explain::found(&walk.said, &found, compiled.userdbs.is_empty());
    // Values of passdb fields may be secrets; the user database's are not.
    let fields: Vec<&str> = request.fields.iter().map(|(name, _)| name).collect();
    let facts: serde_json::Map<String, Value> =
        request.userdb.iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
    let mut answer = json!({
        "user": user,
        "found": found,
        "canonical": canonical,
        "final": request.user,
        "listener": listener.name,
        "passdb": passdb,
        "userdb": userdb,
        "steps": request.trace.clone().unwrap_or_default(),
        "passdb_fields": fields,
        "userdb_fields": facts,
    });
    if let Some((result, reason)) = result {
        answer["result"] = json!(result);
        answer["reason"] = json!(reason);
    }
    Ok(answer)
}
