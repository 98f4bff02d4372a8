//! `[[auth.passdb]]` and `[[auth.userdb]]`: what is allowed in an entry depends on its `driver`, which is read first.
//!
//! Trust: entries are the administrator's text; a key that the entry's driver does not have is an error with its
//!        place.
//! Never: take a key that another driver would understand.

use toml::de::DeTable;

use crate::codec::{Text, did_you_mean, quote};
use crate::schema::{Cx, Driver, Field, Kind, Necessity, Section, TableInfo, Written, join};
use crate::settings::{Passdb, PassdbDriver, PassdbRules, Userdb, UserdbDriver, UserdbRules};

/// The keys that every chain entry has.
const CHAIN_FIELDS: &[Field] = &[
    Field {
        name: "name",
        kind: Kind::Value("a text"),
        necessity: Necessity::Described("the driver's name, made unique", "\"system\""),
        default: || Written::Absent,
        doc: &[" Name in logs and in other tables."],
    },
    Field {
        name: "driver",
        kind: Kind::Value("a driver"),
        necessity: Necessity::Required("\"passwd-file\""),
        default: || Written::Absent,
        doc: &[" Where it looks; each driver has further keys, below."],
    },
];

/// Reads name, driver, rules and the driver's keys of a chain entry.
fn read_entry<R: Section, D: Driver + Default>(
    cx: &mut Cx,
    path: &str,
    table: &DeTable<'_>,
    at: std::ops::Range<usize>,
) -> (String, R, D) {
    let mut fields = CHAIN_FIELDS.iter();
    let name = fields.next().and_then(|f| cx.field::<Text>(path, table, &at, f)).unwrap_or_default();
    let word = fields.next().and_then(|f| cx.field::<Text>(path, table, &at, f));
    let rules = R::info().fields;
    let variant = word.as_ref().and_then(|word| D::DRIVERS.iter().find(|v| v.name == word));
    let driver = match (&word, variant) {
        (Some(word), Some(variant)) => {
            cx.unknown_keys(path, table, &[CHAIN_FIELDS, variant.fields, rules]);
            D::read(word, cx, path, table, at.clone()).unwrap_or_default()
        }
        (Some(word), None) => {
            let all: Vec<&'static str> = D::DRIVERS.iter().map(|v| v.name).collect();
            cx.problem_at(
                &join(path, "driver"),
                format!("there is no driver `{word}`"),
                did_you_mean(word, &all),
            );
            D::default()
        }
        (None, _) => D::default(),
    };
    (name, R::read(cx, path, table, at), driver)
}

fn write_entry<R: Section, D: Driver>(name: &str, rules: &R, driver: &D) -> Vec<(&'static str, Written)> {
    let (word, own) = driver.write();
    let mut out = vec![("name", Written::Value(quote(name))), ("driver", Written::Value(quote(word)))];
    out.extend(own);
    out.extend(rules.write());
    out
}

macro_rules! chain_entry {
    ($entry:ident, $rules:ident, $driver:ident, $doc:literal) => {
        impl Section for $entry {
            fn info() -> TableInfo {
                TableInfo {
                    doc: &[$doc],
                    fields: CHAIN_FIELDS,
                    rules: $rules::FIELDS,
                    variants: $driver::DRIVERS,
                }
            }

            fn read(cx: &mut Cx, path: &str, table: &DeTable<'_>, at: std::ops::Range<usize>) -> Self {
                let (name, rules, driver) = read_entry::<$rules, $driver>(cx, path, table, at);
                Self { name, rules, driver }
            }

            fn write(&self) -> Vec<(&'static str, Written)> {
                write_entry(&self.name, &self.rules, &self.driver)
            }
        }
    };
}

chain_entry!(Passdb, PassdbRules, PassdbDriver, " One place where passwords are checked.");
chain_entry!(Userdb, UserdbRules, UserdbDriver, " One place where facts of a user come from.");
