//! The one mechanism behind the settings: a declaration gives the type, its default, its field table, its
//! reader and its writer.
//!
//! Purpose:   a key is declared once, in `settings.rs`; the walker, the sample and the reference follow.
//! Trust:     readers get spanned values of a parsed document and report every mistake to [`Cx`].
//! Never:     a reader that stops at its first mistake: it reports, takes the default and goes on.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::errors::Problem;
use crate::nearest::nearest;

/// What a key holds.
#[derive(Clone, Copy)]
pub enum Kind {
    /// A value; the text completes "expected …".
    Value(&'static str),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A table, `[name]`.
    Table(fn() -> TableInfo),
    /// A list of tables, `[[name]]`.
    Tables(fn() -> TableInfo),
    /// A key that is known only to be refused with a better message.
    Refused,
}

/// Whether a key may be left out, and what the manual says then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Necessity {
    /// Must stand in the file; the text is an example value.
    Required(&'static str),
    /// May be left out; the default is the type's.
    Default,
    /// May be left out; the first text says in words what holds then, the second is an example value.
    Described(&'static str, &'static str),
    /// May be left out and is unset then; the text is an example value.
    Optional(&'static str),
}

/// One key of a table.
#[derive(Clone, Copy)]
pub struct Field {
    /// The key as written in the file.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// Whether it must be there.
    pub necessity: Necessity,
    /// Default value as the file would spell it.
    pub default: fn() -> Written,
    /// Documentation, line by line.
    pub doc: &'static [&'static str],
}

/// A table of the file, as the generators and the walker see it.
#[derive(Clone, Copy)]
pub struct TableInfo {
    /// Documentation, line by line.
    pub doc: &'static [&'static str],
    /// Keys that are always allowed.
    pub fields: &'static [Field],
    /// Keys of the rules block (chain entries only).
    pub rules: &'static [Field],
    /// Further keys by `driver` (chain entries only).
    pub variants: &'static [Variant],
}

/// What a value of `driver` adds to a table.
#[derive(Clone, Copy)]
pub struct Variant {
    /// The word after `driver =`.
    pub name: &'static str,
    /// Documentation, line by line.
    pub doc: &'static [&'static str],
    /// The driver's own keys.
    pub fields: &'static [Field],
}

/// A value on its way into a file.
#[derive(Clone, Debug, PartialEq)]
pub enum Written {
    /// Not set: no line.
    Absent,
    /// TOML text of the value.
    Value(String),
    /// A table and its keys.
    Table(Vec<(&'static str, Written)>),
    /// Tables in order.
    Tables(Vec<Vec<(&'static str, Written)>>),
}

/// Reads and writes one kind of value.
pub(crate) trait Codec {
    /// The Rust type.
    type Value;
    /// For messages and the manual.
    const KIND: Kind;
    /// Reads; on a mistake reports it and answers `None`.
    fn read(cx: &mut Cx, path: &str, value: &Spanned<DeValue<'_>>) -> Option<Self::Value>;
    /// The value as the file would spell it.
    fn write(value: &Self::Value) -> Written;
}

/// A table of known keys.
pub(crate) trait Section: Sized + Default {
    /// Its documentation and fields.
    fn info() -> TableInfo;
    /// Reads a whole table; what is missing or wrong stays at its default.
    fn read(cx: &mut Cx, path: &str, table: &DeTable<'_>, at: Range<usize>) -> Self;
    /// All keys with their values.
    fn write(&self) -> Vec<(&'static str, Written)>;
}

/// What a reader carries along: mistakes so far, where things stand, what relative paths mean.
#[derive(Debug, Default)]
pub(crate) struct Cx {
    /// Mistakes, in the order found.
    pub problems: Vec<Problem>,
    /// Span of every value read, by path such as `smtp.listener[0].name`.
    pub places: BTreeMap<String, Range<usize>>,
    /// Folder that relative paths are below.
    pub base: PathBuf,
}

impl Cx {
    /// Reports a mistake.
    pub(crate) fn problem(&mut self, at: Range<usize>, title: impl Into<String>, help: impl Into<String>) {
        self.problems.push(Problem::at(at, title, help));
    }

    /// Reports a mistake at a value, or at the nearest table above it that stands in the file.
    pub(crate) fn problem_at(&mut self, path: &str, title: impl Into<String>, help: impl Into<String>) {
        let mut part = path;
        let at = loop {
            if let Some(span) = self.places.get(part) {
                break span.clone();
            }
            match part.rfind(['.', '[']) {
                Some(cut) => part = part.get(..cut).unwrap_or_default(),
                None => break 0..0,
            }
        };
        self.problem(at, title, help);
    }

    /// Reads one key of a table with its codec, or says that it is missing.
    pub(crate) fn field<C: Codec>(
        &mut self,
        path: &str,
        table: &DeTable<'_>,
        at: &Range<usize>,
        field: &Field,
    ) -> Option<C::Value> {
        let full = join(path, field.name);
        match table.get(field.name) {
            Some(value) => {
                self.places.insert(full.clone(), value.span());
                C::read(self, &full, value)
            }
            None => {
                if let Necessity::Required(example) = field.necessity {
                    self.problem(
                        at.clone(),
                        format!("`{}` is missing in {}", field.name, place(path)),
                        format!("add a line such as `{} = {example}`", field.name),
                    );
                }
                None
            }
        }
    }

    /// Reports every key of `table` that no list in `known` has.
    pub(crate) fn unknown_keys(&mut self, path: &str, table: &DeTable<'_>, known: &[&[Field]]) {
        let names: Vec<&str> = known.iter().flat_map(|fields| fields.iter().map(|f| f.name)).collect();
        for key in table.keys() {
            let name: &str = key.get_ref();
            if names.contains(&name) {
                continue;
            }
            let help = match nearest(name, names.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("the keys here are: {}", names.join(", ")),
            };
            self.problem(key.span(), format!("unknown key `{name}` in {}", place(path)), help);
        }
    }

    /// Reports a value of another kind.
    pub(crate) fn wrong_kind(&mut self, path: &str, value: &Spanned<DeValue<'_>>, expected: &str) {
        self.problem(
            value.span(),
            format!("`{}` is {}, but must be {expected}", leaf(path), kind_of(value.get_ref())),
            format!("write {expected}"),
        );
    }
}

/// `a` + `b` → `a.b`.
pub(crate) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// The last name of a path, for messages.
pub(crate) fn leaf(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// A table's name as people write it: `[auth]`, `[[smtp.listener]]`, "the top of the file".
pub(crate) fn place(path: &str) -> String {
    match (path, path.rfind('[')) {
        ("", _) => "the top of the file".to_owned(),
        (_, Some(cut)) if path.ends_with(']') => format!("[[{}]]", path.get(..cut).unwrap_or(path)),
        _ => format!("[{path}]"),
    }
}

fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a decimal number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// Declares tables: struct, `Default`, field table, reader and writer in one.
///
/// `name as "key": Type => Codec = default, necessity "text";` where `as` and the necessity are optional.
macro_rules! tables {
    ($(
        $(#[doc = $tdoc:literal])*
        pub struct $table:ident {
            $(
                $(#[doc = $doc:literal])*
                $name:ident $(as $key:literal)? : $ty:ty => $codec:ty = $default:expr $(, $need:ident $text:literal $($example:literal)? )? ;
            )*
        }
    )*) => {$(
        $(#[doc = $tdoc])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        pub struct $table {
            $(
                $(#[doc = $doc])*
                pub $name: $ty,
            )*
        }

        impl Default for $table {
            fn default() -> Self {
                Self { $($name: $default,)* }
            }
        }

        impl $table {
            /// Documentation of the table, line by line.
            pub const DOC: &'static [&'static str] = &[$($tdoc),*];
            /// Its keys, in the order of the manual.
            pub const FIELDS: &'static [$crate::schema::Field] = &[$(
                $crate::schema::Field {
                    name: $crate::schema::key!($name $(, $key)?),
                    kind: <$codec as $crate::schema::Codec>::KIND,
                    necessity: $crate::schema::necessity!($($need $text $($example)?)?),
                    default: || {
                        let value: $ty = $default;
                        <$codec as $crate::schema::Codec>::write(&value)
                    },
                    doc: &[$($doc),*],
                },
            )*];
        }

        impl $crate::schema::Section for $table {
            fn info() -> $crate::schema::TableInfo {
                $crate::schema::TableInfo { doc: Self::DOC, fields: Self::FIELDS, rules: &[], variants: &[] }
            }

            fn read(
                cx: &mut $crate::schema::Cx,
                path: &str,
                table: &toml::de::DeTable<'_>,
                at: std::ops::Range<usize>,
            ) -> Self {
                let mut made = Self::default();
                let mut fields = Self::FIELDS.iter();
                $(
                    if let Some(value) =
                        fields.next().and_then(|field| cx.field::<$codec>(path, table, &at, field))
                    {
                        made.$name = value;
                    }
                )*
                made
            }

            fn write(&self) -> Vec<(&'static str, $crate::schema::Written)> {
                vec![$((
                    $crate::schema::key!($name $(, $key)?),
                    <$codec as $crate::schema::Codec>::write(&self.$name),
                )),*]
            }
        }
    )*};
}
pub(crate) use tables;

/// Declares enumerations whose values are words in the file.
macro_rules! choices {
    ($(
        $(#[doc = $tdoc:literal])*
        pub enum $name:ident {
            $( $(#[doc = $doc:literal])* $variant:ident = $word:literal $($default:ident)?, )*
        }
    )*) => {$(
        $(#[doc = $tdoc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $( $(#[doc = $doc])* $(#[$default])? #[serde(rename = $word)] $variant, )*
        }

        impl $name {
            /// The words of the file, in order.
            pub const WORDS: &'static [&'static str] = &[$($word),*];

            /// The word of the file.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl std::str::FromStr for $name {
            type Err = ();

            fn from_str(word: &str) -> Result<Self, ()> {
                match word { $($word => Ok(Self::$variant),)* _ => Err(()) }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.word())
            }
        }

        impl $crate::codec::Word for $name {
            const ALL: &'static [&'static str] = Self::WORDS;

            fn spell(&self) -> &'static str {
                self.word()
            }
        }
    )*};
}
pub(crate) use choices;

/// Declares the drivers of a chain: the enum, each driver's field table, reader and writer.
macro_rules! drivers {
    (
        $(#[doc = $edoc:literal])*
        pub enum $name:ident {
            $(
                $(#[doc = $vdoc:literal])*
                $variant:ident = $word:literal
                $({
                    $(
                        $(#[doc = $doc:literal])*
                        $field:ident : $ty:ty => $codec:ty = $default:expr $(, $need:ident $text:literal $($example:literal)? )? ;
                    )*
                })?
            )*
        }
    ) => {
        $(#[doc = $edoc])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $(
                $(#[doc = $vdoc])*
                $variant $({ $( $(#[doc = $doc])* $field: $ty, )* })?,
            )*
        }

        impl $name {
            /// Every driver: its word, documentation and keys.
            pub const DRIVERS: &'static [$crate::schema::Variant] = &[$(
                $crate::schema::Variant {
                    name: $word,
                    doc: &[$($vdoc),*],
                    fields: &[$($(
                        $crate::schema::Field {
                            name: stringify!($field),
                            kind: <$codec as $crate::schema::Codec>::KIND,
                            necessity: $crate::schema::necessity!($($need $text $($example)?)?),
                            default: || {
                                let value: $ty = $default;
                                <$codec as $crate::schema::Codec>::write(&value)
                            },
                            doc: &[$($doc),*],
                        },
                    )*)?],
                },
            )*];

            /// The word after `driver =`.
            pub fn word(&self) -> &'static str {
                match self { $(Self::$variant { .. } => $word,)* }
            }
        }

        impl $crate::schema::Driver for $name {
            const DRIVERS: &'static [$crate::schema::Variant] = Self::DRIVERS;

            fn read(
                word: &str,
                cx: &mut $crate::schema::Cx,
                path: &str,
                table: &toml::de::DeTable<'_>,
                at: std::ops::Range<usize>,
            ) -> Option<Self> {
                let variant = Self::DRIVERS.iter().find(|v| v.name == word)?;
                #[allow(unused_mut, unused_variables)]
                let mut fields = variant.fields.iter();
                match word {
                    $($word => Some(Self::$variant { $($(
                        $field: fields
                            .next()
                            .and_then(|field| cx.field::<$codec>(path, table, &at, field))
                            .unwrap_or_else(|| $default),
                    )*)? }),)*
                    _ => None,
                }
            }

            fn write(&self) -> (&'static str, Vec<(&'static str, $crate::schema::Written)>) {
                match self {
                    $(Self::$variant { $($($field),*)? } => ($word, vec![$($((
                        stringify!($field),
                        <$codec as $crate::schema::Codec>::write($field),
                    )),*)?]),)*
                }
            }
        }
    };
}
pub(crate) use drivers;

/// What [`drivers!`] makes.
pub(crate) trait Driver: Sized {
    /// All of them.
    const DRIVERS: &'static [Variant];
    /// Reads the keys of the driver called `word`; `None` if there is no such driver.
    fn read(word: &str, cx: &mut Cx, path: &str, table: &DeTable<'_>, at: Range<usize>) -> Option<Self>;
    /// The word and the driver's own keys.
    fn write(&self) -> (&'static str, Vec<(&'static str, Written)>);
}

macro_rules! key {
    ($name:ident) => {
        stringify!($name)
    };
    ($name:ident, $key:literal) => {
        $key
    };
}
pub(crate) use key;

macro_rules! necessity {
    () => {
        $crate::schema::Necessity::Default
    };
    (required $text:literal) => {
        $crate::schema::Necessity::Required($text)
    };
    (described $text:literal $example:literal) => {
        $crate::schema::Necessity::Described($text, $example)
    };
    (optional $text:literal) => {
        $crate::schema::Necessity::Optional($text)
    };
}
pub(crate) use necessity;
