//! One of the four: an HTTP service that answers from its cache.

use std::net::SocketAddr;
use std::time::Duration;

use fullbore_cache::redis::{RedisTier, WhenUnreachable};
use fullbore_cache::{Cache, LoadingCache};
use fullbore_core::Shutdown;
use serde::{Deserialize, Serialize};

use crate::args::NodeArgs;
use crate::http::{Client, Request, Response, Server};
use crate::role;
use crate::upstream::Item;

/// More than the upstream ever takes, also on a machine that is busy with something else.
const PATIENCE: Duration = Duration::from_secs(15);

/// What a node has done.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct NodeStats {
    pub(crate) memory_hits: u64,
    pub(crate) redis_hits: u64,
    pub(crate) loads: u64,
    pub(crate) waits: u64,
    pub(crate) revoked: u64,
    pub(crate) takeovers: u64,
}

impl NodeStats {
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            memory_hits: self.memory_hits + other.memory_hits,
            redis_hits: self.redis_hits + other.redis_hits,
            loads: self.loads + other.loads,
            waits: self.waits + other.waits,
            revoked: self.revoked + other.revoked,
            takeovers: self.takeovers + other.takeovers,
        }
    }
}

/// Serves until the process that started this one ends.
pub(crate) fn serve(args: &NodeArgs) -> Result<(), String> {
    let shutdown = Shutdown::new();
    shutdown.on_signals().map_err(|error| format!("cannot listen for Ctrl-C: {error}"))?;
    let cache = cache(args).map_err(|error| format!("node {}: {error}", args.node))?;
    shutdown.register(cache.clone());
    let server = Server::start(&format!("node-{}", args.node), move |request| answer(&cache, request))?;
    role::ready(&shutdown, &server.addr().to_string())?;
    // What is loaded goes to Redis, and what is not begun is given back to the others.
    shutdown.close_within(Duration::from_secs(1));
    Ok(())
}

// ANCHOR: cache
fn cache(args: &NodeArgs) -> Result<LoadingCache<u64, Item>, Box<dyn std::error::Error>> {
    let tier = RedisTier::builder()
        .url(&args.redis)
        .prefix(&args.prefix)
        .when_unreachable(WhenUnreachable::Fail)
        // The checks are about what holds while Redis answers, also late on a busy machine; a service gives up sooner.
        .budget(Duration::from_secs(1))
        .build()?;
    let upstream = args.upstream;
    let cache = Cache::builder()
        .name(format!("node-{}", args.node))
        .ttl(Duration::from_secs(60))
        .redis(tier)
        .loader(move |id, _| fetch(upstream, *id))
        .build()?;
    Ok(cache)
}
// ANCHOR_END: cache

fn fetch(upstream: SocketAddr, id: u64) -> Result<Item, Box<dyn std::error::Error + Send + Sync>> {
    let response = Client::connect(upstream, PATIENCE)?.ask("GET", &format!("/item/{id}"))?;
    match response.status {
        200 => Ok(serde_json::from_str(&response.body)?),
        status => Err(format!("the upstream says {status}: {}", response.body).into()),
    }
}

fn answer(cache: &LoadingCache<u64, Item>, request: &Request) -> Response {
    let mut parts = request.path.split('/').skip(1);
    let (what, id, verb) = (parts.next(), parts.next().and_then(|id| id.parse().ok()), parts.next());
    match (request.method.as_str(), what, id, verb) {
        ("GET", Some("item"), Some(id), None) => match cache.get_or_load(&id) {
            Ok(item) => json(&item),
            Err(error) => Response::new(502, error.to_string()),
        },
        ("POST", Some("item"), Some(id), Some("invalidate")) => match cache.try_remove(&id) {
            Ok(_) => Response::new(204, ""),
            // It is owed, and done as soon as Redis can be asked; until then other nodes may have it.
            Err(error) => Response::new(503, error.to_string()),
        },
        ("POST", Some("clear"), None, None) => match cache.try_clear() {
            Ok(()) => Response::new(204, ""),
            Err(error) => Response::new(503, error.to_string()),
        },
        ("GET", Some("stats"), None, None) => json(&stats(cache)),
        _ => Response::new(404, "GET /item/ID, POST /item/ID/invalidate, POST /clear, GET /stats"),
    }
}

fn stats(cache: &LoadingCache<u64, Item>) -> NodeStats {
    let (memory, redis) = (cache.stats(), cache.tier_stats());
    let of_redis = |count: fn(&fullbore_cache::redis::TierStats) -> u64| redis.as_ref().map_or(0, count);
    NodeStats {
        memory_hits: memory.hits,
        redis_hits: of_redis(|stats| stats.hits),
        loads: memory.loads,
        waits: memory.waits + of_redis(|stats| stats.waited),
        revoked: of_redis(|stats| stats.revoked),
        takeovers: of_redis(|stats| stats.takeovers),
    }
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(body) => Response::new(200, body),
        Err(error) => Response::new(500, error.to_string()),
    }
}
