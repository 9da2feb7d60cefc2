//! A PostgreSQL pool with a transaction. `DATABASE_URL` says where.
use fullbore::prelude::*;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // ANCHOR: body
    let pool = Pool::builder(Postgres::new(&std::env::var("DATABASE_URL")?)?).max_size(16).build()?;
    pool.with(|db| db.batch_execute("CREATE TABLE IF NOT EXISTS accounts (id INT PRIMARY KEY, cents INT)"))??;
    let cents = pool.transaction(|tx| {
        tx.execute("INSERT INTO accounts VALUES (7, 0) ON CONFLICT DO NOTHING", &[])?;
        tx.query_one("UPDATE accounts SET cents = cents + 100 WHERE id = 7 RETURNING cents", &[])?.try_get::<_, i32>(0)
    })?; // committed; an error or a panic inside would have rolled it back
    println!("account 7 holds {cents} cents; {:?}", pool.status());
    // ANCHOR_END: body
    assert!(cents >= 100);
    Ok(())
}
