//! The pool with workers that are threads of the test.

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

fn limits(count: u32, max_requests: u32, timeout: Duration) -> conf::Workers {
    conf::Workers { count, max_requests, timeout, ..conf::Workers::default() }
}

/// Workers that answer by `behave`: a reply, or `None` to hang up.
fn pool(
    limits: conf::Workers,
    behave: impl Fn(record::Asked) -> Option<Reply> + Send + Sync + 'static,
) -> (Workers, Arc<AtomicUsize>) {
    let behave = Arc::new(behave);
    let started = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&started);
    let spawner: Spawner = Arc::new(move || {
        counter.fetch_add(1, Ordering::SeqCst);
        let (ours, mut theirs) = StdStream::pair()?;
        let behave = Arc::clone(&behave);
        std::thread::spawn(move || {
            let mut length = [0; 4];
            while theirs.read_exact(&mut length).is_ok() {
                let mut body = vec![0; u32::from_le_bytes(length) as usize];
                theirs.read_exact(&mut body).unwrap();
                match behave(record::Asked::decode(&body).unwrap()) {
                    Some(reply) => theirs.write_all(&reply.encode()).unwrap(),
                    None => return,
                }
            }
        });
        Ok((ours, None))
    });
    (Workers::with_spawner(limits, spawner), started)
}

/// What a module may do.
fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

fn shadow() -> Question {
    Question::Shadow(StateRules::default())
}

const TERMS: Terms = Terms { until: None, suspect: false };

async fn ask(workers: &Workers, user: &str) -> Answer {
    workers.verify(&shadow(), user, b"pw", &Facts::default(), TERMS).await.answer
}

/// Workers that are a shell script in a process group of its own.
fn scripts(limits: conf::Workers, script: String) -> Workers {
    let spawner: Spawner = Arc::new(move || {
        let (ours, theirs) = StdStream::pair()?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &script]).process_group(0).stdin(OwnedFd::from(theirs));
        Ok((ours, Some(command.spawn()?)))
    });
    Workers::with_spawner(limits, spawner)
}

#[tokio::test]
async fn workers_are_used_again_and_replaced() {
    let (workers, started) =
        pool(limits(1, 3, Duration::from_secs(5)), |_| Some(Reply::Answer(Answer::Ok(None).into())));
    for _ in 0..7 {
        assert_eq!(ask(&workers, "bob").await, Answer::Ok(None));
    }
    assert_eq!(started.load(Ordering::SeqCst), 3);
    workers.retire_idle(Instant::now() + IDLE);
    assert_eq!(ask(&workers, "bob").await, Answer::Ok(None));
    assert_eq!(started.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn a_hanging_worker_is_given_up_and_the_next_question_gets_another() {
    let (workers, started) = pool(limits(1, 100, Duration::from_millis(50)), |asked| {
        if matches!(&asked, record::Asked::Verify { user, .. } if user == "hang") {
            hang();
        }
        Some(Reply::Answer(Answer::Mismatch.into()))
    });
    let Answer::Unavailable(why) = ask(&workers, "hang").await else { panic!() };
    assert!(why.starts_with("shadow did not answer within "), "{why}");
    assert_eq!(ask(&workers, "bob").await, Answer::Mismatch);
    assert_eq!(started.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn nobody_waits_longer_than_the_client() {
    let (workers, _) = pool(limits(1, 100, Duration::from_secs(30)), |_| hang());
    let began = Instant::now();
    let terms = Terms { until: Some(began + Duration::from_millis(80)), suspect: false };
    let facts = Facts::default();
    let question = shadow();
    let ask = || async { workers.verify(&question, "u", b"pw", &facts, terms).await.answer };
    // The first has the worker, the second waits for one.
    let (first, second) = tokio::join!(ask(), ask());
    assert!(matches!(&first, Answer::Unavailable(why) if why.contains("did not answer")), "{first:?}");
    assert!(matches!(&second, Answer::Unavailable(why) if why.contains("no worker was free")), "{second:?}");
    assert!(began.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn the_log_tells_what_a_worker_died_of() {
    let workers = scripts(limits(1, 100, Duration::from_secs(5)), "kill -SEGV $$".to_owned());
    let Answer::Unavailable(why) = ask(&workers, "bob").await else { panic!() };
    assert!(why.starts_with("the worker for shadow died: signal: 11 (SIGSEGV)"), "{why}");
}

#[tokio::test]
async fn helpers_go_with_their_worker() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let script = format!("sleep 1000 & echo $! >{0}.new; mv {0}.new {0}; wait", file.display());
    let workers = scripts(limits(1, 100, Duration::from_secs(2)), script);
    assert!(matches!(ask(&workers, "bob").await, Answer::Unavailable(_)));
    let helper: i32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    for _ in 0..1000 {
        // Gone, or a zombie that its new parent has not reaped yet.
        let stat = std::fs::read_to_string(format!("/proc/{helper}/stat"));
        if stat.map_or(true, |stat| stat.contains(") Z ")) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the helper {helper} lives on");
}

#[tokio::test]
async fn a_kind_that_hangs_does_not_take_all_workers() {
    let (workers, _) = pool(limits(4, 100, Duration::from_secs(3)), |asked| {
        if matches!(&asked, record::Asked::Verify { user, .. } if user == "hang") {
            hang();
        }
        Some(Reply::Answer(Answer::Ok(None).into()))
    });
    let workers = Arc::new(workers);
    let hanging: Vec<_> = (0..50)
        .map(|_| {
            let workers = Arc::clone(&workers);
            tokio::spawn(async move {
                let (effects, rules) = Default::default();
                let question = Question::Pam { service: "slow".into(), effects, rules, messages: false };
                workers.verify(&question, "hang", b"pw", &Facts::default(), TERMS).await
            })
        })
        .collect();
    tokio::task::yield_now().await;
    let began = Instant::now();
    for _ in 0..20 {
        assert_eq!(ask(&workers, "bob").await, Answer::Ok(None));
    }
    assert!(began.elapsed() < Duration::from_secs(2));
    for task in hanging {
        task.abort();
    }
}

#[tokio::test]
async fn a_dying_worker_is_an_outage_not_a_refusal() {
    let (workers, _) = pool(limits(2, 100, Duration::from_secs(5)), |asked| {
        (!matches!(&asked, record::Asked::Verify { user, .. } if user == "die"))
            .then_some(Reply::Answer(Answer::Unknown.into()))
    });
    assert!(matches!(ask(&workers, "die").await, Answer::Unavailable(_)));
    assert_eq!(ask(&workers, "bob").await, Answer::Unknown);
}

#[tokio::test]
async fn the_number_of_workers_is_bounded() {
    let running = Arc::new(AtomicUsize::new(0));
    let peak = Arc::new(AtomicUsize::new(0));
    let (now, most) = (Arc::clone(&running), Arc::clone(&peak));
    // Of three workers one kind of question may have two: each waits until the other one is there.
    let pair = std::sync::Barrier::new(2);
    let (workers, _) = pool(limits(3, 100, Duration::from_secs(20)), move |_| {
        let count = now.fetch_add(1, Ordering::SeqCst) + 1;
        most.fetch_max(count, Ordering::SeqCst);
        pair.wait();
        now.fetch_sub(1, Ordering::SeqCst);
        Some(Reply::Answer(Answer::Ok(None).into()))
    });
    let workers = Arc::new(workers);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let workers = Arc::clone(&workers);
        tasks.spawn(async move { ask(&workers, "bob").await });
    }
    assert!(tasks.join_all().await.iter().all(|answer| *answer == Answer::Ok(None)));
    assert!((2..=3).contains(&peak.load(Ordering::SeqCst)));
}

#[tokio::test]
async fn real_accounts_are_found() {
    let (ours, theirs) = StdStream::pair().unwrap();
    std::thread::spawn(move || backend::serve(theirs));
    let once = Mutex::new(Some(ours));
    let spawner: Spawner = Arc::new(move || {
        once.lock().unwrap().take().map(|stream| (stream, None)).ok_or_else(|| io::ErrorKind::NotFound.into())
    });
    let workers = Workers::with_spawner(limits(1, 100, Duration::from_secs(5)), spawner);
    let root = workers.passwd("root", None).await.unwrap().unwrap();
    assert_eq!((root.uid, root.name.as_str()), (0, "root"));
    assert_eq!(workers.passwd("no-such-user-here", None).await, Ok(None));
    assert!(workers.accounts(0).await.unwrap().contains(&"root".to_owned()));
    assert!(!workers.accounts(1).await.unwrap().contains(&"root".to_owned()));
}

#[tokio::test]
async fn a_worker_that_is_busy_while_settings_change_is_not_used_again() {
    let (began, waiting) = std::sync::mpsc::channel();
    let (go_on, held) = std::sync::mpsc::channel::<()>();
    let (began, held) = (Mutex::new(began), Mutex::new(held));
    let (workers, started) = pool(limits(1, 100, Duration::from_secs(60)), move |_| {
        began.lock().unwrap().send(()).ok();
        held.lock().unwrap().recv().ok();
        Some(Reply::Answer(Answer::Ok(None).into()))
    });
    let asking = tokio::spawn({
        let workers = workers.clone();
        async move { ask(&workers, "bob").await }
    });
    tokio::task::spawn_blocking(move || waiting.recv_timeout(Duration::from_secs(30)).unwrap())
        .await
        .unwrap();
    workers.set_limits(&limits(1, 100, Duration::from_secs(60)));
    drop(go_on);
    assert_eq!(asking.await.unwrap(), Answer::Ok(None));
    assert_eq!(ask(&workers, "bob").await, Answer::Ok(None));
    assert_eq!(started.load(Ordering::SeqCst), 2);
}
