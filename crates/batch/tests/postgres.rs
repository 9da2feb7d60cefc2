//! Batches into a real PostgreSQL, also one that dies at the wrong moment.
#![cfg(feature = "postgres")]
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::error::Error;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, SystemTime};

use fullbore_batch::{Batch, Batcher, CopyIn, MultiRowInsert, PostgresRow, Retryable, Ticket, WriteError, Written};
use fullbore_core::Failure;
use fullbore_testkit::{Postgres as Server, TcpProxy};
use postgres::error::SqlState;
use postgres::{Client, NoTls};

use common::{NEVER, blow_up};

const LONG: Duration = Duration::from_secs(60);

type Rows<T> = fn(&T, &mut PostgresRow<'_>) -> Result<(), Box<dyn Error + Send + Sync>>;
type Write<T> = Box<dyn Fn(&mut Client, &[T]) -> Result<Written, WriteError> + Send + Sync>;

/// Both ways into the same table.
fn ways<T: 'static>(columns: &[&str], rows: Rows<T>) -> [(&'static str, Write<T>); 2] {
    let copy = CopyIn::new("t", columns.iter().copied(), rows);
    let insert = MultiRowInsert::new("t", columns.iter().copied(), rows);
    [
        ("copy", Box::new(move |client, items| copy.write(client, items))),
        ("insert", Box::new(move |client, items| insert.write(client, items))),
    ]
}

fn ids() -> [(&'static str, Write<i64>); 2] {
    ways(&["id"], |id, row| row.put(&[id]))
}

fn table(server: &Server, columns: &str) -> Client {
    let mut client = server.client();
    client.batch_execute(&format!("CREATE TABLE t ({columns})")).unwrap();
    client
}

/// Takes them out.
fn stored(client: &mut Client) -> BTreeSet<i64> {
    let rows = client.query("DELETE FROM t RETURNING id", &[]).unwrap();
    let ids: BTreeSet<i64> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(ids.len(), rows.len(), "none twice");
    ids
}

fn code(error: &WriteError) -> Option<SqlState> {
    error.cause().downcast_ref::<postgres::Error>().and_then(postgres::Error::code).cloned()
}

#[derive(Clone, Debug, PartialEq)]
struct Row {
    id: i64,
    small: Option<i16>,
    number: Option<i32>,
    real: Option<f64>,
    text: Option<String>,
    bytes: Option<Vec<u8>>,
    flag: Option<bool>,
    at: Option<SystemTime>,
    list: Option<Vec<Option<String>>>,
    positive: i32,
}

const COLUMNS: [&str; 10] = ["id", "small", "number", "\"real\"", "text", "bytes", "flag", "at", "list", "positive"];

fn row(id: i64) -> Row {
    let (small, number, real, text, bytes) = (None, None, None, None, None);
    Row { id, small, number, real, text, bytes, flag: None, at: None, list: None, positive: 1 }
}

fn put(row: &Row, to: &mut PostgresRow<'_>) -> Result<(), Box<dyn Error + Send + Sync>> {
    let Row { id, small, number, real, text, bytes, flag, at, list, positive } = row;
    to.put(&[id, small, number, real, text, bytes, flag, at, list, positive])
}

fn typed_table(server: &Server) -> Client {
    server.client().batch_execute("CREATE DOMAIN above_zero AS int CHECK (VALUE > 0)").unwrap();
    table(
        server,
        "id bigint PRIMARY KEY, small smallint, number int, \"real\" float8, text text, bytes bytea, flag boolean,
         at timestamptz, list text[], positive above_zero",
    )
}

fn all(client: &mut Client) -> Vec<Row> {
    let rows = client.query("SELECT * FROM t ORDER BY id", &[]).unwrap();
    let row = |row: &postgres::Row| Row {
        id: row.get(0),
        small: row.get(1),
        number: row.get(2),
        real: row.get(3),
        text: row.get(4),
        bytes: row.get(5),
        flag: row.get(6),
        at: row.get(7),
        list: row.get(8),
        positive: row.get(9),
    };
    rows.iter().map(row).collect()
}

#[test]
fn every_value_comes_back_as_it_was() {
    let Some(server) = Server::start_or_skip() else { return };
    let mut client = typed_table(&server);
    let at = SystemTime::UNIX_EPOCH + Duration::from_micros(1_357_034_400_000_001);
    let rows = [
        Row { small: Some(i16::MIN), number: Some(i32::MIN), ..row(i64::MIN) },
        row(0),
        Row { real: Some(f64::NEG_INFINITY), bytes: Some(vec![]), flag: Some(false), ..row(1) },
        Row { real: Some(-0.0), bytes: Some(vec![0, 255, 0]), flag: Some(true), at: Some(at), ..row(2) },
        Row { text: Some("it's \"quoted\", \\N \\. %s, $1\r\n\tnew line; -- no comment".into()), ..row(3) },
        Row { text: Some(String::new()), list: Some(vec![]), ..row(4) },
        Row { text: Some("čau 🛫 \u{10ffff}".into()), list: Some(vec![None, Some("{a,\"b\"}".into())]), ..row(5) },
        Row { small: Some(i16::MAX), number: Some(i32::MAX), positive: i32::MAX, ..row(i64::MAX) },
    ];
    let nan = [Row { real: Some(f64::NAN), ..row(9) }];
    for (way, write) in ways(&COLUMNS, put) {
        assert_eq!(write(&mut client, &rows).unwrap().rows(), rows.len() as u64, "{way}");
        assert_eq!(all(&mut client), rows, "{way}");
        stored(&mut client);
        write(&mut client, &nan).unwrap();
        assert!(all(&mut client)[0].real.is_some_and(f64::is_nan), "{way}");
        stored(&mut client);
    }
}

#[test]
fn none_one_and_more_than_fit_a_statement() {
    let Some(server) = Server::start_or_skip() else { return };
    let mut client = typed_table(&server);
    // Up to 70,000 parameters; with a rest for a statement of its own, and without.
    let ten = [0, 1, 399, 400, 7_000];
    let one = [0, 1, 3_999, 4_001, 70_000];
    for (way, write) in ways(&COLUMNS, put) {
        for count in ten {
            let rows: Vec<Row> = (0..count).map(row).collect();
            assert_eq!(write(&mut client, &rows).unwrap().rows(), count as u64, "{way}");
            assert!(stored(&mut client).into_iter().eq(0..count), "{way}: {count}");
        }
    }
    for (way, write) in ids() {
        for count in one {
            let ids: Vec<i64> = (0..count).collect();
            assert_eq!(write(&mut client, &ids).unwrap().rows(), count as u64, "{way}");
            assert!(stored(&mut client).into_iter().eq(0..count), "{way}: {count}");
        }
    }
}

#[test]
fn an_item_makes_as_many_rows_as_it_likes() {
    let Some(server) = Server::start_or_skip() else { return };
    let mut client = table(&server, "id bigint");
    for (way, write) in ways::<Range<i64>>(&["id"], |ids, row| ids.clone().try_for_each(|id| row.put(&[&id]))) {
        for ranges in [[0..0, 0..3, 3..4], [0..0, 0..0, 0..0], [0..2, 2..2, 2..70_000]] {
            let last = ranges[2].end;
            assert_eq!(write(&mut client, &ranges).unwrap().rows(), last as u64, "{way}");
            assert!(stored(&mut client).into_iter().eq(0..last), "{way}");
        }
    }
}

#[test]
fn a_violation_rolls_the_whole_batch_back_and_says_which() {
    let Some(server) = Server::start_or_skip() else { return };
    let mut client = typed_table(&server);
    let zero = |id| Row { text: Some("zero \0 in it".into()), ..row(id) };
    let below = |id| Row { positive: 0, ..row(id) };
    for (way, write) in ways(&COLUMNS, put) {
        for (bad, expected, says) in [
            (row(0), SqlState::UNIQUE_VIOLATION, "violates unique constraint \"t_pkey\""),
            (below(1), SqlState::CHECK_VIOLATION, "violates check constraint \"above_zero_check\""),
            (zero(1), SqlState::CHARACTER_NOT_IN_REPERTOIRE, "invalid byte sequence for encoding \"UTF8\": 0x00"),
        ] {
            let error = write(&mut client, &[row(0), bad, row(2)]).unwrap_err();
            assert_eq!(code(&error), Some(expected), "{way}");
            assert!(error.to_string().starts_with("not written: db error: ERROR: "), "{way}: {error}");
            assert!(error.to_string().contains(says), "{way}: {error}");
            assert!(!error.is_in_doubt() && error.may_retry() && error.is_permanent(), "{way}: {error}");
            assert!(all(&mut client).is_empty(), "{way}: {error}");
        }
        // In the last of several statements.
        let mut many: Vec<Row> = (0..7_000).map(row).collect();
        many[6_999].id = 0;
        assert_eq!(code(&write(&mut client, &many).unwrap_err()), Some(SqlState::UNIQUE_VIOLATION), "{way}");
        // The client is as good as before.
        write(&mut client, &[row(0)]).unwrap();
        assert!(stored(&mut client).into_iter().eq(0..1), "{way}");
    }
}

#[test]
fn a_refused_commit_is_not_in_doubt() {
    let Some(server) = Server::start_or_skip() else { return };
    let mut client = table(&server, "id bigint PRIMARY KEY DEFERRABLE INITIALLY DEFERRED");
    for (way, write) in ids() {
        let error = write(&mut client, &[1, 2, 1]).unwrap_err();
        assert_eq!(code(&error), Some(SqlState::UNIQUE_VIOLATION), "{way}");
        assert!(!error.is_in_doubt() && error.is_permanent(), "{way}: {error}");
        assert!(stored(&mut client).is_empty(), "{way}");
        write(&mut client, &[1, 2]).unwrap();
        assert_eq!(stored(&mut client).len(), 2, "{way}");
    }
}

/// Columns, rows, the item to blame, and a part of the text.
type Bad<'a> = (&'a [&'a str], Rows<i64>, Option<usize>, &'a str);

#[test]
fn bad_tables_values_and_rows_are_errors() {
    let Some(server) = Server::start_or_skip() else { return };
    let mut client = table(&server, "id bigint, small smallint");
    let cases: [Bad<'_>; 7] = [
        (&["nothing"], |id, row| row.put(&[id]), None, "column \"nothing\" "),
        (&[], |id, row| row.put(&[id]), None, ""),
        (&["id"], |_, row| row.put(&[]), Some(0), "0 values for 1 columns"),
        (&["id"], |id, row| row.put(&[id, id]), Some(0), "2 values for 1 columns"),
        (&["small"], |id, row| row.put(&[id]), Some(0), "cannot convert between the Rust type `i64` and the Postgres"),
        (&["small"], |id, row| row.put(&[&i16::try_from(*id)?]), Some(1), "out of range integral type conversion"),
        // Its bad value would be a part of the next row.
        (
            &["id", "small"],
            |id, row| row.put(&[id, id]).or_else(|_| row.put(&[id, &1_i16])),
            Some(0),
            "an error of `put` was not passed on",
        ),
    ];
    for (columns, rows, item, says) in cases {
        for (way, write) in ways(columns, rows) {
            let error = write(&mut client, &[1, 70_000]).unwrap_err();
            assert_eq!(error.item(), item, "{way}: {error}");
            assert!(error.to_string().contains(says), "{way}: {error}");
            assert!(!error.is_in_doubt() && error.is_permanent(), "{way}: {error}");
            assert!(stored(&mut client).is_empty(), "{way}: {error}");
        }
    }
    let nowhere = CopyIn::new("nowhere", ["id"], |id: &i64, row| row.put(&[id]));
    assert_eq!(code(&nowhere.write(&mut client, &[1]).unwrap_err()), Some(SqlState::UNDEFINED_TABLE));
}

#[test]
fn an_error_kept_to_itself_is_found_at_the_commit_at_the_latest() {
    let Some(server) = Server::start_or_skip() else { return };
    let mut client = table(&server, "id bigint PRIMARY KEY");
    // The first of several statements fails while rows are made: a COMMIT now would look like a success.
    for (way, write) in ways::<i64>(&["id"], |id, row| row.put(&[id]).or(Ok(()))) {
        let twice: Vec<i64> = [1].into_iter().chain(1..=65_535).collect();
        assert!(!write(&mut client, &twice).unwrap_err().is_in_doubt(), "{way}");
        assert!(stored(&mut client).is_empty(), "{way}");
    }
}

#[test]
fn a_panic_of_the_closure_rolls_back() {
    let Some(server) = Server::start_or_skip() else { return };
    let mut client = table(&server, "id bigint");
    let rows: Rows<i64> = |id, row| if *id == 2 { blow_up() } else { row.put(&[id]) };
    for (way, write) in ways(&["id"], rows) {
        assert!(catch_unwind(AssertUnwindSafe(|| write(&mut client, &[1, 2]))).is_err(), "{way}");
        write(&mut client, &[3]).unwrap();
        assert!(stored(&mut client).into_iter().eq([3]), "{way}");
    }
}

#[test]
fn in_a_transaction_of_the_callers_with_what_else_is_written() {
    let Some(server) = Server::start_or_skip() else { return };
    let mut client = table(&server, "id bigint PRIMARY KEY");
    client.batch_execute("CREATE TABLE log (n bigint)").unwrap();
    let copy = CopyIn::new("t", ["id"], |id: &i64, row| row.put(&[id]));
    let insert = MultiRowInsert::new("log", ["n"], |n: &i64, row| row.put(&[n]));
    for (ids, ok) in [([1, 2], true), ([3, 3], false)] {
        let mut transaction = client.transaction().unwrap();
        insert.write_in(&mut transaction, &ids).unwrap();
        let outcome = copy.write_in(&mut transaction, &ids);
        assert_eq!(outcome.is_ok(), ok, "{outcome:?}");
        if ok {
            transaction.commit().unwrap();
        }
    }
    let logged: i64 = client.query_one("SELECT count(*) FROM log", &[]).unwrap().get(0);
    assert_eq!((logged, stored(&mut client)), (2, BTreeSet::from([1, 2])));
}

#[test]
fn an_upsert_can_be_done_twice() {
    let Some(server) = Server::start_or_skip() else { return };
    let mut client = table(&server, "id bigint PRIMARY KEY, n int DEFAULT 0");
    let insert = MultiRowInsert::new("t", ["id"], |id: &i64, row| row.put(&[id]));
    let nothing = insert.clone().on_conflict("DO NOTHING");
    assert_eq!(nothing.write(&mut client, &[1, 2]).unwrap().rows(), 2);
    assert_eq!(nothing.write(&mut client, &[2, 3]).unwrap().rows(), 1);
    let update = insert.on_conflict("(id) DO UPDATE SET n = t.n + 1");
    assert_eq!(update.write(&mut client, &[2, 3, 4]).unwrap().rows(), 3);
    let sum: i64 = client.query_one("SELECT sum(n) FROM t", &[]).unwrap().get(0);
    assert_eq!((sum, stored(&mut client).len()), (2, 4));
}

#[test]
fn a_table_that_changes_its_types_meanwhile_is_no_matter() {
    let Some(server) = Server::start_or_skip() else { return };
    let mut client = table(&server, "id int");
    let [(_, copy), (_, insert)] = ids();
    assert!(copy(&mut client, &[1]).unwrap_err().is_permanent() && insert(&mut client, &[1]).is_err());
    server.client().batch_execute("ALTER TABLE t ALTER id TYPE bigint").unwrap();
    copy(&mut client, &[1]).unwrap();
    insert(&mut client, &[2]).unwrap();
    assert_eq!(stored(&mut client), BTreeSet::from([1, 2]));
}

/// What became of the batches of a run, by their items.
#[derive(Debug, Default)]
struct Outcomes {
    acknowledged: BTreeSet<i64>,
    not_written: BTreeSet<i64>,
    in_doubt: BTreeSet<i64>,
}

impl Outcomes {
    fn take(&mut self, tickets: impl IntoIterator<Item = (i64, Ticket<()>)>) {
        for (id, ticket) in tickets {
            let of = match ticket.wait() {
                Ok(()) => &mut self.acknowledged,
                Err(failure) if error_of(&failure).is_in_doubt() => {
                    assert!(!failure.may_retry(), "{failure}");
                    &mut self.in_doubt
                }
                Err(failure) => {
                    assert!(failure.may_retry() && !failure.is_permanent(), "{failure}");
                    &mut self.not_written
                }
            };
            assert!(of.insert(id));
        }
    }

    /// Rows in the table are those acknowledged and, of those in doubt, whole batches. Returns how many rows these are.
    fn check(&self, stored: &BTreeSet<i64>, batch: i64) -> usize {
        assert_eq!(self.acknowledged.difference(stored).next(), None, "acknowledged and lost");
        assert_eq!(self.not_written.intersection(stored).next(), None, "returned as not written");
        let committed: BTreeSet<i64> = self.in_doubt.intersection(stored).copied().collect();
        let batches: BTreeSet<i64> = committed.iter().map(|id| id / batch).collect();
        assert_eq!(committed.len() as i64, batches.len() as i64 * batch, "part of a batch");
        assert_eq!(stored.len(), self.acknowledged.len() + committed.len());
        committed.len()
    }
}

fn error_of(failure: &Failure) -> &WriteError {
    failure.downcast_ref().unwrap_or_else(|| panic!("{failure}"))
}

/// A batcher of batches of exactly `size`, with a new connection for each.
fn batcher(way: &'static str, url: String, size: usize) -> Batcher<i64, ()> {
    let connect = move || Client::connect(&url, NoTls).map(Box::new);
    let row = |id: &i64, row: &mut PostgresRow<'_>| row.put(&[id]);
    let builder = Batcher::builder().max_items(size).capacity(100_000).linger(NEVER);
    match way {
        "copy" => builder.build(CopyIn::new("t", ["id"], row).through(connect)).unwrap(),
        _ => builder.build(MultiRowInsert::new("t", ["id"], row).through(connect)).unwrap(),
    }
}

fn submit(batcher: &Batcher<i64, ()>, ids: Range<i64>) -> Vec<(i64, Ticket<()>)> {
    ids.map(|id| (id, batcher.submit(id).unwrap())).collect()
}

/// Each commit of a row whose id is a multiple of 100 waits for advisory lock 1, which `client` holds.
fn some_commits_wait(client: &mut Client) {
    let setup = "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql
            AS 'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END';
        CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW WHEN (NEW.id % 100 = 0) EXECUTE FUNCTION wait();
        SELECT pg_advisory_lock(1)";
    client.batch_execute(setup).unwrap();
}

/// Until somebody waits in COMMIT; the pid of its back end.
fn backend_in_commit(client: &mut Client) -> i32 {
    let mut pid = None;
    let who = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    assert!(fullbore_testkit::eventually(LONG, || {
        pid = client.query_opt(who, &[]).unwrap().map(|row| row.get(0));
        pid.is_some()
    }));
    pid.unwrap()
}

#[test]
fn a_connection_cut_in_commit_leaves_exactly_that_batch_in_doubt() {
    let Some(server) = Server::start_or_skip() else { return };
    let mut other = table(&server, "id bigint PRIMARY KEY");
    some_commits_wait(&mut other);
    for way in ["copy", "insert"] {
        let proxy = TcpProxy::start(server.addr()).unwrap();
        let batcher = batcher(way, server.url_at(proxy.addr()), 10);
        // Of 40 batches these four wait in COMMIT: of those with 0, 100, 200 and 300.
        let tickets = submit(&batcher, 0..400);
        for fault in 0..4 {
            let pid = backend_in_commit(&mut other);
            if fault % 2 == 0 {
                // The COMMIT has arrived, and nobody hears that it is done. The lock comes back when it is.
                proxy.cut();
                other.batch_execute("SELECT pg_advisory_unlock(1); SELECT pg_advisory_lock(1)").unwrap();
            } else {
                other.execute("SELECT pg_terminate_backend($1)", &[&pid]).unwrap();
                let waits = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND pid = $1";
                assert!(fullbore_testkit::eventually(LONG, || other.query_opt(waits, &[&pid]).unwrap().is_none()));
            }
        }
        let mut outcomes = Outcomes::default();
        outcomes.take(tickets);
        assert!(outcomes.in_doubt.iter().copied().eq([0..10, 100..110, 200..210, 300..310].into_iter().flatten()));
        assert_eq!((outcomes.acknowledged.len(), outcomes.not_written.len()), (360, 0), "{way}");
        let stored = stored(&mut other);
        assert_eq!(outcomes.check(&stored, 10), 20, "{way}: those whose answer was cut off");
        batcher.close().unwrap();
        let seen = batcher.station().snapshot();
        assert!(seen.balanced() && (seen.served, seen.failed) == (360, 40), "{seen:?}");
    }
}

#[test]
fn a_connection_cut_before_the_commit_leaves_nothing_in_doubt() {
    let Some(server) = Server::start_or_skip() else { return };
    let mut other = table(&server, "id bigint PRIMARY KEY");
    for way in ["copy", "insert"] {
        let proxy = TcpProxy::start(server.addr()).unwrap();
        let batcher = batcher(way, server.url_at(proxy.addr()), 10);
        // Rows wait for this lock, long before there is a COMMIT.
        let mut locker = server.client();
        let mut lock = locker.transaction().unwrap();
        lock.batch_execute("LOCK TABLE t").unwrap();
        let tickets = submit(&batcher, 0..10);
        assert!(fullbore_testkit::eventually(LONG, || {
            let waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 't'::regclass";
            other.query_opt(waits, &[]).unwrap().is_some()
        }));
        proxy.cut();
        let mut outcomes = Outcomes::default();
        outcomes.take(tickets);
        lock.rollback().unwrap();
        assert_eq!(outcomes.not_written.len(), 10, "{way}");
        // It goes on with the next.
        outcomes.take(submit(&batcher, 10..20));
        assert_eq!(outcomes.acknowledged.len(), 10, "{way}");
        batcher.close().unwrap();
        assert_eq!(outcomes.check(&stored(&mut other), 10), 0, "{way}");
    }
}

#[test]
fn a_server_killed_in_mid_run_loses_nothing_acknowledged() {
    let Some(server) = Server::start_or_skip() else { return };
    table(&server, "id bigint PRIMARY KEY");
    let mut next = 0;
    for way in ["copy", "insert"] {
        let mut outcomes = Outcomes::default();
        for _ in 0..3 {
            let batcher = batcher(way, server.url(), 50);
            let mut tickets = submit(&batcher, next..next + 20_000).into_iter();
            next += 20_000;
            // In the middle of whatever it does after 1,000 rows.
            outcomes.take(tickets.by_ref().take(1_000));
            server.kill_9();
            outcomes.take(tickets);
            batcher.close().unwrap();
            server.restart();
        }
        assert!(outcomes.acknowledged.len() >= 3_000 && !outcomes.not_written.is_empty(), "{way}");
        let total = outcomes.acknowledged.len() + outcomes.not_written.len() + outcomes.in_doubt.len();
        assert_eq!(total, 60_000, "{way}");
        outcomes.check(&stored(&mut server.client()), 50);
    }
}

#[test]
fn a_server_killed_in_commit_leaves_the_batch_in_doubt_and_idempotent_ones_may_be_retried() {
    let Some(server) = Server::start_or_skip() else { return };
    let mut other = table(&server, "id bigint PRIMARY KEY");
    some_commits_wait(&mut other);
    let row = |id: &i64, row: &mut PostgresRow<'_>| row.put(&[id]);
    let upsert = MultiRowInsert::new("t", ["id"], row).on_conflict("DO NOTHING").idempotent(true);
    let copy = CopyIn::new("t", ["id"], row);
    let mut clients = [server.client(), server.client()];
    let [first, second] = &mut clients;
    thread::scope(|scope| {
        let upserting = scope.spawn(|| upsert.write(first, &[100, 101]));
        let copying = scope.spawn(|| copy.write(second, &[200, 201]));
        let both = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
        assert!(fullbore_testkit::eventually(LONG, || other.query_one(both, &[]).unwrap().get::<_, i64>(0) == 2));
        server.kill_9();
        for (writing, may_retry) in [(upserting, true), (copying, false)] {
            let error = writing.join().unwrap().unwrap_err();
            assert!(error.is_in_doubt() && error.may_retry() == may_retry, "{error}");
            let text = error.to_string();
            assert!(text.starts_with("the connection was lost during commit, written or not is unknown: "), "{text}");
        }
    });
    server.restart();
    let mut client = server.client();
    assert!(stored(&mut client).is_empty());
    upsert.write(&mut client, &[100, 101]).unwrap();
    assert_eq!(stored(&mut client), BTreeSet::from([100, 101]));
    // A client whose connection is gone says so, and is not in doubt.
    let error = copy.write(second, &[200]).unwrap_err();
    assert!(!error.is_in_doubt() && error.may_retry() && !error.is_permanent(), "{error}");
}

#[test]
fn a_client_of_ones_own_in_a_batcher() {
    let Some(server) = Server::start_or_skip() else { return };
    let mut other = table(&server, "id bigint PRIMARY KEY");
    let client = Mutex::new(server.client());
    let copy = CopyIn::new("t", ["id"], |id: &i64, row| row.put(&[id]));
    let batcher = Batcher::builder()
        .max_items(100)
        .linger(Duration::ZERO)
        .build(move |ids: Batch<_>| copy.write(&mut client.lock().unwrap(), &ids))
        .unwrap();
    thread::scope(|scope| {
        for producer in 0..4 {
            let handle = batcher.handle();
            scope.spawn(move || (0..500).for_each(|n| handle.send(producer * 500 + n).unwrap()));
        }
    });
    batcher.close().unwrap();
    assert!(stored(&mut other).into_iter().eq(0..2_000));
}
