//! A batch into PostgreSQL, in one transaction: by COPY, or by inserts of many rows.

use std::error::Error as StdError;
use std::fmt::{self, Write as _};
use std::ops::{DerefMut, Range};
use std::sync::Arc;

use ::postgres::binary_copy::BinaryCopyInWriter;
use ::postgres::error::{DbError, Severity, SqlState};
use ::postgres::types::{Format, IsNull, Kind, ToSql, Type, to_sql_checked};
use ::postgres::{Client, Error, Statement, Transaction};
use bytes::BytesMut;

use crate::batch::Batch;
use crate::write::{Cause, NOT_PASSED_ON, WriteError, Written};

/// How many parameters a statement can have: the protocol counts them in 16 bits.
const PARAMETERS: usize = u16::MAX as usize;

/// To parse this many parameters costs as much as a round trip: 0.3 us each, measured, and 0.3 ms, as between two machines of
/// a data centre.
const WORTH_A_ROUND_TRIP: usize = 1_000;

type Values<'v> = &'v [&'v (dyn ToSql + Sync)];
type MakeRows<T> = dyn Fn(&T, &mut PostgresRow<'_>) -> Result<(), Cause> + Send + Sync;

/// Writes a batch into PostgreSQL by `COPY ... FROM STDIN BINARY`, in one transaction: all of it or nothing. The fastest way
/// in. What COPY cannot do, such as `ON CONFLICT`, [`MultiRowInsert`] can.
///
/// ```no_run
/// use fullbore_batch::{Batcher, CopyIn};
/// # struct Pool(postgres::Config);
/// # impl Pool {
/// #     fn get(&self) -> Result<Box<postgres::Client>, postgres::Error> { self.0.connect(postgres::NoTls).map(Box::new) }
/// # }
/// # fn example(pool: Pool) -> Result<(), Box<dyn std::error::Error>> {
///
/// let copy = CopyIn::new("readings", ["sensor", "value"], |(sensor, value): &(i32, f64), row| row.put(&[sensor, value]));
/// let batcher = Batcher::builder().max_items(1_000).build(copy.through(move || pool.get()))?;
/// batcher.call((7, 21.5))?; // it is committed
/// # Ok(()) }
/// ```
///
/// With a client of your own: `move |rows: Batch<_>| copy.write(&mut client.lock().unwrap(), &rows)`.
///
/// # What it costs
/// Six round trips for each batch, whatever its size: begin, the types of the columns, two for the COPY, its end, commit.
/// Where the network is far away, larger batches pay for them.
pub struct CopyIn<T> {
    table: Table<T>,
}

/// Writes a batch into PostgreSQL by `INSERT` statements of many rows, in one transaction: all of it or nothing.
///
/// A batch takes several statements alike: parsing one costs more than running it, so a shorter one that runs several times is
/// faster, and none can have more than 65,535 parameters. Slower than [`CopyIn`], and can do what an insert can:
/// [`on_conflict`](Self::on_conflict).
///
/// ```no_run
/// use fullbore_batch::{Batch, Batcher, MultiRowInsert};
/// # use std::sync::Mutex;
/// # fn example(client: Mutex<postgres::Client>) -> Result<(), Box<dyn std::error::Error>> {
///
/// let upsert = MultiRowInsert::new("readings", ["sensor", "value"], |(sensor, value): &(i32, f64), row| {
///     row.put(&[sensor, value])
/// });
/// let upsert = upsert.on_conflict("(sensor) DO UPDATE SET value = EXCLUDED.value").idempotent(true);
/// let batcher = Batcher::builder().build(move |rows: Batch<_>| upsert.write(&mut client.lock().unwrap(), &rows))?;
/// # batcher.call((7, 21.5))?;
/// # Ok(()) }
/// ```
pub struct MultiRowInsert<T> {
    table: Table<T>,
    on_conflict: Option<String>,
}

/// What both have in common.
struct Table<T> {
    name: String,
    columns: Vec<String>,
    rows: Arc<MakeRows<T>>,
    idempotent: bool,
}

/// Where the rows of an item go. See [`CopyIn::new`].
pub struct PostgresRow<'p> {
    put: &'p mut dyn FnMut(Values<'_>) -> Result<(), Cause>,
    failed: bool,
}

impl PostgresRow<'_> {
    /// Writes a row with these values, in the order of the columns.
    ///
    /// # Errors
    /// A value does not fit its column's type, there are too many or too few values, or the database says no. To be passed
    /// on: the batch is not written, either way.
    pub fn put(&mut self, values: &[&(dyn ToSql + Sync)]) -> Result<(), Box<dyn StdError + Send + Sync>> {
        let put = (self.put)(values);
        self.failed |= put.is_err();
        put
    }
}

impl fmt::Debug for PostgresRow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresRow").field("failed", &self.failed).finish_non_exhaustive()
    }
}

/// What the two types have in common: their constructor, and everything around the statements.
macro_rules! writer {
    ($writer:ident { $($more:ident)? }) => {
        impl<T> $writer<T> {
            /// The table, its columns, and what makes an item's rows: `rows` calls [`PostgresRow::put`] once for each row, so
            /// usually once. An error of it, of whatever type, fails the batch. It runs inside the transaction and should
            /// not wait; a panic rolls back.
            ///
            /// The names become part of the SQL **as they are**: quote them as SQL wants it, and take them from nobody
            /// else.
            pub fn new<F, C>(table: impl Into<String>, columns: C, rows: F) -> Self
            where
                C: IntoIterator<Item: Into<String>>,
                F: Fn(&T, &mut PostgresRow<'_>) -> Result<(), Box<dyn StdError + Send + Sync>>,
                F: Send + Sync + 'static,
            {
                let columns = columns.into_iter().map(Into::into).collect();
                let table = Table { name: table.into(), columns, rows: Arc::new(rows), idempotent: false };
                Self { table, $($more: None)? }
            }

            /// Says that writing a batch twice is the same as once, because a trigger or a key with `ON CONFLICT` sees to it.
            /// Only then may a batch be retried that is in doubt.
            ///
            /// Default: no.
            #[must_use]
            pub fn idempotent(mut self, yes: bool) -> Self {
                self.table.idempotent = yes;
                self
            }

            /// Writes `items` in a transaction of its own and commits. Nothing is begun for no items.
            ///
            /// It waits as long as the server takes: set `statement_timeout` and `tcp_user_timeout` in the connection
            /// string.
            ///
            /// # Errors
            /// Nothing is written; or the connection was lost during COMMIT, and it is in doubt.
            pub fn write(&self, client: &mut Client, items: &[T]) -> Result<Written, WriteError> {
                if items.is_empty() {
                    return Ok(Written::default());
                }
                let mut transaction = client.transaction().map_err(not_written)?;
                let written = self.write_in(&mut transaction, items)?;
                transaction.commit().map_err(|error| commit_failed(error, self.table.idempotent))?;
                Ok(written)
            }

            /// A process function that takes a connection for each batch, of a pool for example. That there is none is an
            /// error like another: nothing is written.
            pub fn through<C, E>(
                self,
                connect: impl Fn() -> Result<C, E> + Send + Sync + 'static,
            ) -> impl Fn(Batch<T>) -> Result<Written, WriteError> + Send + Sync + 'static
            where
                T: 'static,
                C: DerefMut<Target = Client>,
                E: Into<Box<dyn StdError + Send + Sync>>,
            {
                move |items| {
                    let mut connection = connect().map_err(WriteError::not_written)?;
                    self.write(&mut connection, &items)
                }
            }
        }

        impl<T> Clone for $writer<T> {
            fn clone(&self) -> Self {
                Self { table: self.table.clone(), $($more: self.$more.clone())? }
            }
        }

        impl<T> fmt::Debug for $writer<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($writer))
                    .field("table", &self.table.name)
                    .field("columns", &self.table.columns)
                    $(.field(stringify!($more), &self.$more))?
                    .field("idempotent", &self.table.idempotent)
                    .finish_non_exhaustive()
            }
        }
    };
}
writer!(CopyIn {});
writer!(MultiRowInsert { on_conflict });

impl<T> CopyIn<T> {
    /// Writes `items` in a transaction of yours, so that they are in it with what else you write. Roll it back after an
    /// error.
    ///
    /// # Errors
    /// As [`write`](Self::write), and never in doubt.
    pub fn write_in(&self, transaction: &mut Transaction<'_>, items: &[T]) -> Result<Written, WriteError> {
        let Table { name, columns, .. } = &self.table;
        let columns = columns.join(", ");
        // COPY does not tell, and a table can change: inside this transaction it cannot any more.
        let like = transaction.prepare(&format!("SELECT {columns} FROM {name}")).map_err(not_written)?;
        let types: Vec<Type> = like.columns().iter().map(|column| column.type_().clone()).collect();
        let copy = format!("COPY {name} ({columns}) FROM STDIN BINARY");
        let mut writer = BinaryCopyInWriter::new(transaction.copy_in(&copy).map_err(not_written)?, &types);
        self.table.each_row(items, &mut |values| {
            expect_values(values, types.len())?;
            Ok(writer.write(values)?)
        })?;
        writer.finish().map(Written::new).map_err(not_written)
    }
}

impl<T> MultiRowInsert<T> {
    /// What follows `ON CONFLICT`: `DO NOTHING`, or `(key) DO UPDATE SET value = EXCLUDED.value`. A statement cannot update a
    /// row twice, so then no key may be twice in a batch.
    ///
    /// Default: none, a conflict is an error.
    #[must_use]
    pub fn on_conflict(mut self, action: impl Into<String>) -> Self {
        self.on_conflict = Some(action.into());
        self
    }

    /// Writes `items` in a transaction of yours, so that they are in it with what else you write. Roll it back after an
    /// error.
    ///
    /// # Errors
    /// As [`write`](Self::write), and never in doubt.
    pub fn write_in(&self, transaction: &mut Transaction<'_>, items: &[T]) -> Result<Written, WriteError> {
        let columns = self.table.columns.len();
        // Usually an item makes one row.
        let at_once = rows_at_once(items.len(), columns);
        let statement = self.prepare(transaction, at_once)?;
        let mut values = Encoded::new(statement.params().iter().take(columns).map(undomained).collect());
        let mut written = 0;
        self.table.each_row(items, &mut |row| {
            expect_values(row, columns)?;
            values.push(row)?;
            if values.rows() == at_once {
                written += values.insert(transaction, &statement)?;
            }
            Ok(())
        })?;
        if values.rows() > 0 {
            let statement = self.prepare(transaction, values.rows())?;
            written += values.insert(transaction, &statement).map_err(not_written)?;
        }
        Ok(Written::new(written))
    }

    fn prepare(&self, transaction: &mut Transaction<'_>, rows: usize) -> Result<Statement, WriteError> {
        transaction.prepare(&self.sql(rows)).map_err(not_written)
    }

    fn sql(&self, rows: usize) -> String {
        let Table { name, columns, .. } = &self.table;
        let mut sql = format!("INSERT INTO {name} ({}) VALUES ", columns.join(", "));
        for row in 0..rows {
            sql.push_str(if row == 0 { "(" } else { ", (" });
            for column in 0..columns.len() {
                let comma = if column == 0 { "" } else { ", " };
                // Writing to a string cannot fail.
                let _ = write!(sql, "{comma}${}", row * columns.len() + column + 1);
            }
            sql.push(')');
        }
        if let Some(action) = &self.on_conflict {
            let _ = write!(sql, " ON CONFLICT {action}");
        }
        sql
    }
}

impl<T> Table<T> {
    fn each_row(&self, items: &[T], put: &mut dyn FnMut(Values<'_>) -> Result<(), Cause>) -> Result<(), WriteError> {
        let mut row = PostgresRow { put, failed: false };
        items.iter().enumerate().try_for_each(|(place, item)| {
            let made = (self.rows)(item, &mut row);
            // The server takes the COMMIT of a transaction in which a statement failed for a ROLLBACK, and the driver that
            // for success.
            let made = if row.failed { made.and(Err(NOT_PASSED_ON.into())) } else { made };
            made.map_err(|cause| match cause.downcast::<Error>() {
                // Of what the server says, or does not say any more, the item at hand is not the reason.
                Ok(error) if !is_encoding(&error) => not_written(*error),
                Ok(error) => WriteError::not_written(error).permanent(true).at_item(place),
                Err(cause) => WriteError::not_written(cause).permanent(true).at_item(place),
            })
        })
    }
}

impl<T> Clone for Table<T> {
    fn clone(&self) -> Self {
        Self {
            name: self.name.clone(),
            columns: self.columns.clone(),
            rows: Arc::clone(&self.rows),
            idempotent: self.idempotent,
        }
    }
}

/// Rows for a statement, as the server wants them. Encoded at once, so that a row's values need not outlive the closure that
/// makes them.
struct Encoded {
    types: Vec<Type>,
    bytes: BytesMut,
    values: Vec<Value>,
}

#[derive(Clone)]
struct Value {
    /// Where its bytes are; `None` is NULL.
    bytes: Option<Range<usize>>,
    format: Format,
}

impl Encoded {
    fn new(types: Vec<Type>) -> Self {
        Self { types, bytes: BytesMut::new(), values: Vec::new() }
    }

    fn rows(&self) -> usize {
        self.values.len() / self.types.len().max(1)
    }

    fn push(&mut self, row: Values<'_>) -> Result<(), Cause> {
        for (value, of_type) in row.iter().zip(&self.types) {
            let start = self.bytes.len();
            let bytes = match value.to_sql_checked(of_type, &mut self.bytes)? {
                IsNull::Yes => None,
                IsNull::No => Some(start..self.bytes.len()),
            };
            self.values.push(Value { bytes, format: value.encode_format(of_type) });
        }
        Ok(())
    }

    /// Inserts all rows and forgets them.
    fn insert(&mut self, transaction: &mut Transaction<'_>, statement: &Statement) -> Result<u64, Error> {
        let raw = self.values.iter().map(|value| {
            let bytes = value.bytes.clone().map(|range| &self.bytes[range]);
            Raw { bytes, format: value.format }
        });
        let raw: Vec<Raw<'_>> = raw.collect();
        let values: Vec<&(dyn ToSql + Sync)> = raw.iter().map(|raw| raw as &(dyn ToSql + Sync)).collect();
        let inserted = transaction.execute(statement, &values);
        self.bytes.clear();
        self.values.clear();
        inserted
    }
}

/// A value that is encoded already.
#[derive(Debug)]
struct Raw<'b> {
    bytes: Option<&'b [u8]>,
    format: Format,
}

impl ToSql for Raw<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Cause> {
        let Some(bytes) = self.bytes else { return Ok(IsNull::Yes) };
        out.extend_from_slice(bytes);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        self.format
    }

    to_sql_checked!();
}

/// How many rows a statement of a batch gets. With `n` statements the parameters of one are parsed and `n` round trips made,
/// which together is least where both are equal.
fn rows_at_once(rows: usize, columns: usize) -> usize {
    let columns = columns.max(1);
    let cheapest = (rows.saturating_mul(columns) / WORTH_A_ROUND_TRIP).isqrt();
    let fewest = rows.div_ceil((PARAMETERS / columns).max(1));
    (rows / cheapest.max(fewest).max(1)).max(1)
}

/// The type that is behind a domain: encoded alike, and the only one that drivers' types know.
fn undomained(of_type: &Type) -> Type {
    let mut of_type = of_type;
    while let Kind::Domain(inner) = of_type.kind() {
        of_type = inner;
    }
    of_type.clone()
}

/// The driver panics at the wrong number.
fn expect_values(values: Values<'_>, columns: usize) -> Result<(), Cause> {
    if values.len() == columns {
        return Ok(());
    }
    Err(format!("{} values for {columns} columns", values.len()).into())
}

fn not_written(error: Error) -> WriteError {
    let permanent = is_permanent(&error);
    WriteError::not_written(error).permanent(permanent)
}

fn commit_failed(error: Error, idempotent: bool) -> WriteError {
    if is_outcome_unknown(&error) { WriteError::in_doubt(error).idempotent(idempotent) } else { not_written(error) }
}

/// An ERROR of the server says that it did not commit. A FATAL one ends the connection, and a pooler between us says with it
/// that it lost the server; anything that is not an answer says nothing.
fn is_outcome_unknown(error: &Error) -> bool {
    error.as_db_error().is_none_or(|answer| {
        answer.parsed_severity() != Some(Severity::Error)
            || answer.code().code().starts_with("08")
            || *answer.code() == SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN
    })
}

/// Whether a value could not be encoded: neither a word of the server's nor the loss of it.
fn is_encoding(error: &Error) -> bool {
    error.source().is_some_and(|source| !source.is::<DbError>() && !source.is::<std::io::Error>())
}

/// The classes of SQLSTATE that the data or the statement itself is to blame for: cardinality, data, constraints, WITH CHECK,
/// syntax and access rights, features that are not there.
fn is_permanent(error: &Error) -> bool {
    let class = error.code().map(|code| &code.code()[..2]);
    class.is_some_and(|class| ["0A", "21", "22", "23", "42", "44"].contains(&class))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_never_too_large_and_no_row_is_left_without_one() {
        for columns in [0, 1, 2, 19, 1_600, 65_535] {
            for rows in [0, 1, 2, 499, 10_000, 65_535, 65_536, 10_000_000, usize::MAX] {
                let at_once = rows_at_once(rows, columns);
                assert!(at_once >= 1 && at_once * columns <= PARAMETERS, "{rows} rows of {columns}: {at_once}");
            }
        }
        // One row and few at once; then shorter ones that run several times.
        assert_eq!([1, 100, 1_000, 10_000].map(|rows| rows_at_once(rows, 19)), [1, 100, 250, 769]);
    }
}
