//! `fullbore-pool` with a real PostgreSQL on the same machine: what it is worth to have a connection.

use std::time::Instant;

use fullbore_pool::Pool;
use fullbore_testkit::Postgres;
use postgres::{Client, SimpleQueryMessage};

use super::FITS;
use crate::measure::{Case, Side};

const SELECT: &str = "select 1 on PostgreSQL";
const CONNECT_EACH: &str = "a connect for each";

/// Cases and rivals that are not on every machine: there may be no server.
pub const NOT_EVERYWHERE: [(&str, &str); 1] = [(SELECT, CONNECT_EACH)];

const WORKS: &str = "the database works";

/// See the module. For the list of the area `pool`.
#[must_use]
pub fn db_cases() -> Vec<Case> {
    if !Postgres::is_installed() {
        return Vec::new();
    }
    vec![Case::new(SELECT, 1, pooled).against(CONNECT_EACH, connect_each)]
}

fn server() -> Postgres {
    Postgres::start().unwrap_or_else(|error| panic!("{error}"))
}

/// The one value of the answer.
fn ask(client: &mut Client, query: &str) -> String {
    let answer = client.simple_query(query).expect(WORKS);
    let value = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    value.expect("it answers with a row").to_owned()
}

fn select(client: &mut Client) {
    assert_eq!(ask(client, "SELECT 1"), "1");
}

fn pooled() -> Side {
    let server = server();
    let manager = fullbore_pool::Postgres::new(&server.url()).expect("the server's own URL");
    let pool = Pool::builder(manager).max_size(1).build().expect(FITS);
    let process = move |pool: &Pool<fullbore_pool::Postgres>| {
        pool.with(|client| ask(client, "SELECT pg_backend_pid()")).expect(WORKS)
    };
    let connection = process(&pool);
    Box::new(move |count| {
        let _kept = &server;
        let began = Instant::now();
        (0..count).for_each(|_| pool.with(select).expect(WORKS));
        let took = began.elapsed();
        assert_eq!(process(&pool), connection, "no connection was lost");
        took
    })
}

fn connect_each() -> Side {
    let server = server();
    Box::new(move |count| {
        let began = Instant::now();
        (0..count).for_each(|_| select(&mut server.client()));
        began.elapsed()
    })
}
