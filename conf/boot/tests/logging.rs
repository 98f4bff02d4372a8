//! Logging of a whole process: it can be set up once only, so this is one test in a process of its own.

use boot::logging::{LogFormat, LogOptions, init};

#[test]
fn set_up_once_then_change_the_level() {
    let options = |level: &str| LogOptions::new("test", level, LogFormat::Journald);
    assert!(init(&options("loud")).is_err());
    // With or without a journal on this machine.
    init(&options("info")).unwrap();
    assert!(!tracing::enabled!(tracing::Level::DEBUG));
    init(&options("other=error,test=debug,warn")).unwrap();
    assert!(tracing::enabled!(tracing::Level::DEBUG));
    assert!(init(&options("test=loud")).is_err());
    assert!(tracing::enabled!(tracing::Level::DEBUG));
}
