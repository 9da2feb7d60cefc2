//! One image, four destinations: each is published once and goes through four queues, none of which is in the way of the
//! others.
//!
//! `cargo run --release --example image_fanout` makes some images and works on them; give it a folder of your own. See `--help`.
#![forbid(unsafe_code)]

mod args;
mod pictures;
mod work;

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fullbore_core::BuildError;
use fullbore_fanout::Router;
use fullbore_metrics::Registry;
use fullbore_queue::{Job, Queue};

use crate::args::{Args, Asked};
use crate::pictures::{Picture, name_of};
use crate::work::{Metadata, Moderation, Search, Thumbnails};

/// Why there is no result; the text is for the user.
#[derive(Debug)]
enum Stop {
    /// The command line asks for something that cannot be.
    Usage(String),
    /// Something fails.
    Failed(String),
}

impl Stop {
    fn failed(error: impl Display) -> Self {
        Self::Failed(error.to_string())
    }
}

fn main() -> ExitCode {
    let outcome = match args::parse(std::env::args_os().skip(1)) {
        Ok(Asked::Run(args)) => run(&args),
        Ok(Asked::Help) => {
            print!("{}", args::HELP);
            Ok(())
        }
        Err(error) => Err(Stop::Usage(format!("{error} (see --help)"))),
    };
    let (error, status) = match outcome {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Stop::Failed(error)) => (error, 1),
        Err(Stop::Usage(error)) => (error, 2),
    };
    eprintln!("image_fanout: {error}");
    ExitCode::from(status)
}

fn run(args: &Args) -> Result<(), Stop> {
    // Removed when it is dropped.
    let temporary = tempfile::tempdir().map_err(Stop::failed)?;
    let made = temporary.path().join("images");
    let folder = match &args.folder {
        Some(folder) => folder,
        None => {
            std::fs::create_dir(&made).map_err(Stop::failed)?;
            pictures::make(&made, args.images).map_err(Stop::Failed)?;
            &made
        }
    };
    let files = pictures::files(folder).map_err(Stop::Usage)?;
    if files.is_empty() {
        let folder = folder.display();
        return Err(Stop::Usage(format!("no file in the folder {folder}: name one with PNG or JPEG files")));
    }
    let out = args.out.clone().unwrap_or_else(|| temporary.path().join("out"));
    let pipeline = Pipeline::start(&out, args)?;

    let began = Instant::now();
    let published = pipeline.publish_all(&files)?;
    let names = &published.names;
    if names.is_empty() {
        let (files, folder) = (files.len(), folder.display());
        return Err(Stop::Usage(format!("none of the {files} files in {folder} is a PNG or JPEG image")));
    }
    let unfinished = pipeline.finish();
    let took = began.elapsed();

    print!("{}", pipeline.registry.table());
    println!(
        "{} images through 4 destinations in {took:.2?}, {} attempts failed on purpose",
        names.len(),
        pipeline.retries()
    );
    println!(
        "{} pixels; {} for a moderator to look at; {} landscape; {} green",
        pipeline.metadata.pixels(),
        pipeline.moderation.suspects(),
        pipeline.search.hits("landscape").map_err(Stop::Failed)?,
        pipeline.search.hits("green").map_err(Stop::Failed)?
    );
    if !published.no_images.is_empty() {
        println!("no images: {}", published.no_images.len());
        published.no_images.iter().for_each(|why| println!("  {why}"));
    }
    let mut wrong = unfinished;
    wrong.extend(pipeline.missing(names).map_err(Stop::Failed)?);
    match wrong.first() {
        None => {
            println!("checked: {} images reached thumbnails, moderation, metadata and search", names.len());
            Ok(())
        }
        Some(first) => Err(Stop::Failed(format!("the check did not hold in {} places, first: {first}", wrong.len()))),
    }
}

/// A queue of images.
type Images = Queue<Arc<Picture>>;

/// The router, the four queues behind it, and what they have made.
struct Pipeline {
    router: Router<Picture>,
    queues: Vec<(&'static str, Images)>,
    registry: Registry,
    retries: Arc<AtomicUsize>,
    thumbnails: Arc<Thumbnails>,
    moderation: Arc<Moderation>,
    metadata: Arc<Metadata>,
    search: Arc<Search>,
}

/// What was found in the folder.
#[derive(Default)]
struct Published {
    names: Vec<String>,
    /// Files that are none, with the reason.
    no_images: Vec<String>,
}

impl Pipeline {
    fn start(out: &Path, args: &Args) -> Result<Self, Stop> {
        let folder = |path: PathBuf| match std::fs::create_dir_all(&path) {
            Ok(()) => Ok(path),
            Err(error) => {
                let path = path.display();
                Err(Stop::Usage(format!("cannot make the folder {path}: {error}; name another with --out")))
            }
        };
        let thumbnails = Arc::new(Thumbnails(folder(out.join("thumbnails"))?));
        let (moderation, metadata) = (Arc::new(Moderation::default()), Arc::new(Metadata::default()));
        let search = Arc::new(Search::open(&out.join("index.db")).map_err(Stop::Usage)?);
        let retries = Arc::new(AtomicUsize::new(0));

        // ANCHOR: fan_out
        let queues = vec![
            ("thumbnails", {
                let thumbnails = Arc::clone(&thumbnails);
                queue("thumbnails", 2, move |image: &Job<Arc<Picture>>| thumbnails.make(image))?
            }),
            ("moderation", {
                let (moderation, pause) = (Arc::clone(&moderation), Duration::from_millis(args.pause_ms as u64));
                queue("moderation", 2, move |image| {
                    thread::sleep(pause); // The slow one.
                    moderation.judge(image);
                })?
            }),
            ("metadata", {
                let metadata = Arc::clone(&metadata);
                queue("metadata", 1, move |image| metadata.note(image))?
            }),
            ("search", {
                let (search, retries, fail_every) = (Arc::clone(&search), Arc::clone(&retries), args.fail_every);
                let attempts = AtomicUsize::new(0);
                queue("search", 1, move |image| {
                    // The one that fails now and then, and is tried again.
                    if (attempts.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(fail_every) {
                        retries.fetch_add(1, Ordering::Relaxed);
                        return Err("the index is out, on purpose".into());
                    }
                    search.add(image)
                })?
            }),
        ];
        let router = Router::builder().name("images").build().map_err(Stop::failed)?;
        let registry = Registry::new();
        registry.add(router.station());
        for (name, queue) in &queues {
            let route = router.route_named(name, "image.new.*", queue.producer()).map_err(Stop::failed)?;
            route.station().feeds(queue.station());
            registry.add(route.station()).add(queue.station());
        }
        // ANCHOR_END: fan_out
        Ok(Self { router, queues, registry, retries, thumbnails, moderation, metadata, search })
    }

    /// Reads and publishes every file, once.
    fn publish_all(&self, files: &[PathBuf]) -> Result<Published, Stop> {
        let mut published = Published::default();
        for path in files {
            match Picture::read(path) {
                Ok(picture) => {
                    published.names.push(name_of(path));
                    let receipt = self.router.publish(picture.topic(), picture).map_err(Stop::failed)?;
                    if !receipt.is_complete() {
                        return Err(Stop::failed(receipt));
                    }
                }
                Err(why) => published.no_images.push(why),
            }
        }
        Ok(published)
    }

    /// Waits for all queues; says what they did not do.
    fn finish(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        if let Err(left) = self.router.close() {
            wrong.push(format!("router: {left}"));
        }
        for (name, queue) in &self.queues {
            if let Err(left) = queue.close_within(Duration::from_secs(600)) {
                wrong.push(format!("{name}: {left}"));
            }
        }
        for row in self.registry.snapshot().stations {
            if !row.balanced() || row.waiting() + row.in_service() > 0 {
                wrong.push(format!("the counts of station {} do not add up: {row}", row.name()));
            }
        }
        wrong
    }

    fn retries(&self) -> usize {
        self.retries.load(Ordering::Relaxed)
    }

    /// Every image that did not reach one of the four.
    fn missing(&self, names: &[String]) -> Result<Vec<String>, String> {
        let mut missing = Vec::new();
        for name in names {
            let found = self.search.count(name)?;
            for (destination, reached) in [
                ("thumbnails", self.thumbnails.has(name)),
                ("moderation", self.moderation.has(name)),
                ("metadata", self.metadata.get(name).is_some_and(|facts| facts.bytes > 0 && facts.width > 0)),
                ("search", found == 1),
            ] {
                if !reached {
                    missing.push(format!("{name} did not reach {destination}"));
                }
            }
        }
        Ok(missing)
    }
}

/// A queue whose jobs are tried up to ten times.
fn queue<O: fullbore_queue::IntoVerdict>(
    name: &str,
    workers: usize,
    handler: impl Fn(&Job<Arc<Picture>>) -> O + Send + Sync + 'static,
) -> Result<Images, Stop> {
    let built: Result<_, BuildError> = Queue::builder()
        .name(name)
        .workers(workers)
        // Images that wait are in memory: this bounds how many.
        .capacity(256)
        .max_attempts(10)
        .backoff(Duration::from_millis(1), Duration::from_millis(50))
        .build(handler);
    built.map_err(Stop::failed)
}
