//! Batch rows into PostgreSQL. `DATABASE_URL` says where.
use fullbore::prelude::*;
use std::time::Duration;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // ANCHOR: body
    let pool = Pool::builder(Postgres::new(&std::env::var("DATABASE_URL")?)?).max_size(4).build()?;
    pool.with(|db| db.batch_execute("CREATE TABLE IF NOT EXISTS readings (sensor INT, value FLOAT8)"))??;
    let batcher = Batcher::builder().max_items(500).build(move |rows: Batch<_>| {
        pool.transaction(|tx| {
            let insert = tx.prepare("INSERT INTO readings VALUES ($1, $2)")?;
            rows.iter().try_for_each(|(sensor, value): &(i32, f64)| tx.execute(&insert, &[sensor, value]).map(drop))
        })
    })?;
    (0..10_000).try_for_each(|n| batcher.send((n % 10, f64::from(n))))?;
    batcher.close_within(Duration::from_secs(30))?;
    // ANCHOR_END: body
    let seen = batcher.station().snapshot();
    assert_eq!((seen.served, seen.failed), (10_000, 0));
    Ok(())
}
