//! What a load can learn, and say about its result.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::store::Held;

/// Handed to every load: says how the value is to be kept.
///
/// ```
/// use fullbore_cache::Cache;
/// use std::time::Duration;
///
/// let users = Cache::<u32, Option<String>>::builder().negative_ttl(Duration::from_secs(5)).build()?;
/// let found = users.get_or_compute(&7, |ctx| {
///     let row: Option<String> = None; // a query
///     if row.is_none() {
///         ctx.negative();
///     }
///     ctx.tags(["users", "tenant:3"]);
///     Ok::<_, std::io::Error>(row)
/// })?;
/// assert_eq!(found, None);
/// users.remove_by_tag("tenant:3");
/// assert_eq!(users.peek(&7), None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct LoadCtx {
    pub(crate) says: Says,
    deadline: Option<Instant>,
    previous: Option<Previous>,
}

/// What a load said about its value.
#[derive(Clone, Debug, Default)]
pub(crate) struct Says {
    pub(crate) ttl: Option<Duration>,
    pub(crate) stale_for: Option<Duration>,
    pub(crate) no_store: bool,
    pub(crate) negative: bool,
    pub(crate) tags: Option<Vec<Arc<str>>>,
    pub(crate) etag: Option<Arc<str>>,
    pub(crate) version: u64,
    pub(crate) retry_after: Option<Duration>,
    /// Its TTL has been shortened by chance already.
    pub(crate) is_exact: bool,
}

/// The value that the load is to replace.
#[derive(Debug)]
pub(crate) struct Previous {
    /// A `Held<V>`.
    pub(crate) held: Box<dyn Any + Send>,
    pub(crate) etag: Option<Arc<str>>,
    pub(crate) tags: Vec<Arc<str>>,
    pub(crate) version: u64,
    pub(crate) negative: bool,
}

impl LoadCtx {
    pub(crate) fn new(deadline: Option<Instant>, previous: Option<Previous>) -> Self {
        Self { says: Says::default(), deadline, previous }
    }

    /// Keeps this value for `ttl` and not for the cache's TTL. It counts from the end of the load. Zero: it is not kept; too
    /// long to represent: it never expires.
    pub fn ttl(&mut self, ttl: Duration) {
        self.says.ttl = Some(ttl);
    }

    /// How long after its TTL this value may still stand in for one that cannot be had, in place of the cache's
    /// [`stale_for`](crate::CacheBuilder::stale_for). Zero: not at all.
    pub fn stale_for(&mut self, stale_for: Duration) {
        self.says.stale_for = Some(stale_for);
    }

    /// Says that the value stands for something that does not exist: it is kept for the cache's
    /// [`negative_ttl`](crate::CacheBuilder::negative_ttl), unless [`ttl`](Self::ttl) says otherwise.
    pub fn negative(&mut self) {
        self.says.negative = true;
    }

    /// Names under which this value can be removed together with others: [`Cache::remove_by_tag`](crate::Cache::remove_by_tag). A tag
    /// that is removed while this load runs wins: the value is not kept. A second call replaces what the first one said.
    pub fn tags<T: Into<Arc<str>>>(&mut self, tags: impl IntoIterator<Item = T>) {
        self.says.tags = Some(tags.into_iter().map(Into::into).collect());
    }

    /// A version of the source's own (a row's version, a sequence number): a load that finds a higher one there leaves that in place, and so does
    /// [`Cache::insert_version`](crate::Cache::insert_version); other insertions do not look. A second tier knows no versions: they are compared with what is in memory. Default: 0, none.
    pub fn version(&mut self, version: u64) {
        self.says.version = version;
    }

    /// What the source calls this state of the value, for [`etag`](Self::etag) in a later load.
    pub fn set_etag(&mut self, etag: impl Into<Arc<str>>) {
        self.says.etag = Some(etag.into());
    }

    /// Gives the value to the caller and to those who wait, and does not keep it.
    pub fn no_store(&mut self) {
        self.says.no_store = true;
    }

    /// If this load fails, the key is not loaded again for so long, in place of the cache's
    /// [`error_ttl`](crate::CacheBuilder::error_ttl). Zero: the next call loads again.
    pub fn retry_after(&mut self, retry_after: Duration) {
        self.says.retry_after = Some(retry_after);
    }

    /// The etag of the value that this load is to replace, if that is still there and has one: to ask the source whether it
    /// has changed.
    #[must_use]
    pub fn etag(&self) -> Option<&str> {
        self.previous.as_ref()?.etag.as_deref()
    }

    /// The value that this load is to replace, if it is still there: early loads find it, and loads of a stale one. `V` is the cache's
    /// type of values.
    #[must_use]
    pub fn previous<V: 'static>(&self) -> Option<&V> {
        Some(self.previous.as_ref()?.held.downcast_ref::<Held<V>>()?.value())
    }

    /// The value that this load is to replace, to be returned as the new one because the source has not changed: with the tags, the
    /// etag and the version it had, unless the load says others, and with a new TTL. `None` if it is not there.
    ///
    /// ```
    /// # use fullbore_cache::LoadCtx;
    /// # fn ask(_: &u32, _: Option<&str>) -> std::io::Result<(u16, String, String)> { unreachable!() }
    /// fn load(id: &u32, ctx: &mut LoadCtx) -> std::io::Result<String> {
    ///     let (status, etag, body) = ask(id, ctx.etag())?;
    ///     if status == 304
    ///         && let Some(same) = ctx.not_modified()
    ///     {
    ///         return Ok(same);
    ///     }
    ///     ctx.set_etag(etag);
    ///     Ok(body)
    /// }
    /// ```
    #[must_use = "it is what the load is to return"]
    pub fn not_modified<V: Clone + 'static>(&mut self) -> Option<V> {
        let previous = self.previous.as_ref()?;
        let value = previous.held.downcast_ref::<Held<V>>()?.value().clone();
        let says = &mut self.says;
        says.tags.get_or_insert_with(|| previous.tags.clone());
        says.etag = says.etag.take().or_else(|| previous.etag.clone());
        says.version = says.version.max(previous.version);
        says.negative |= previous.negative;
        Some(value)
    }

    /// The deadline of the call that this load is part of, if it has one: nobody can interrupt a load, so it should pass this
    /// on to whatever it waits for.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
}
