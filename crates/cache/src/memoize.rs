//! A function whose results are remembered.

use std::convert::Infallible;
use std::error::Error;
use std::hash::Hash;

use crate::cache::Cache;
use crate::error::CacheError;

/// A function that can be [memoized](Cache::memoize): one of a single argument, which is the key, or one of two to six, whose tuple is.
/// `Shape` only tells the two kinds apart and is always inferred.
pub trait MemoFn<Args, Shape> {
    /// What it returns.
    type Output;

    /// Calls it.
    fn call(&self, args: Args) -> Self::Output;
}

/// The shape of a function of one argument.
#[derive(Debug)]
pub enum Whole {}

/// The shape of a function whose arguments come as a tuple.
#[derive(Debug)]
pub enum Spread {}

impl<F, A, R> MemoFn<A, Whole> for F
where
    F: Fn(A) -> R,
{
    type Output = R;

    fn call(&self, args: A) -> R {
        self(args)
    }
}

macro_rules! spread {
    ($($arg:ident)+) => {
        impl<F, R, $($arg),+> MemoFn<($($arg,)+), Spread> for F
        where
            F: Fn($($arg),+) -> R,
        {
            type Output = R;

            #[expect(non_snake_case, reason = "a name for the type and its value")]
            fn call(&self, ($($arg,)+): ($($arg,)+)) -> R {
                self($($arg),+)
            }
        }
    };
}
spread!(A B);
spread!(A B C);
spread!(A B C D);
spread!(A B C D E);
spread!(A B C D E G);

impl<K, V> Cache<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// `function` with a memory: the results are this cache's, under its capacity and TTL (10 minutes, if you set none). The key is the argument, or the tuple of
    /// two to six arguments. Threads that ask for the same at the same time share one call.
    ///
    /// Where the cache has no result to give (closed, a wait that timed out, a call that needs its own result) `function` is simply called.
    ///
    /// ```
    /// use fullbore_cache::Cache;
    ///
    /// fn distance(from: String, to: String) -> u64 {
    ///     (from.len() + to.len()) as u64 // something slow
    /// }
    ///
    /// let distance = Cache::builder().capacity(1_000).ttl(None).build()?.memoize(distance);
    /// assert_eq!(distance(("Oslo".into(), "Rome".into())), 8);
    /// assert_eq!(distance(("Oslo".into(), "Rome".into())), 8); // not computed again
    /// # Ok::<(), fullbore_core::BuildError>(())
    /// ```
    ///
    /// # Panics
    /// The function that is returned does if `function` does.
    pub fn memoize<F, S>(&self, function: F) -> impl Fn(K) -> V + use<F, S, K, V>
    where
        F: MemoFn<K, S, Output = V>,
    {
        let cache = self.clone();
        move |args| {
            let compute = |_: &mut _| Ok::<_, Infallible>(function.call(args.clone()));
            match cache.get_or_compute(&args, compute) {
                Ok(value) => value,
                Err(_) => function.call(args),
            }
        }
    }

    /// As [`memoize`](Self::memoize) for a function that can fail. Errors are not remembered, unless the cache has an
    /// [`error_ttl`](crate::CacheBuilder::error_ttl).
    ///
    /// ```
    /// use fullbore_cache::Cache;
    ///
    /// let parse = Cache::<String, u32>::builder().build()?.try_memoize(|text: String| text.parse::<u32>());
    /// assert_eq!(parse("7".into())?, 7);
    /// assert!(parse("seven".into()).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    /// The function that is returned does if `function` does.
    pub fn try_memoize<F, S, E>(&self, function: F) -> impl Fn(K) -> Result<V, CacheError> + use<F, S, E, K, V>
    where
        F: MemoFn<K, S, Output = Result<V, E>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let cache = self.clone();
        move |args| cache.get_or_compute(&args, |_| function.call(args.clone()))
    }
}
