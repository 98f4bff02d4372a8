//! Taking on a new plan while everything runs.
//!
//! Trust: the planner is asked for the administrator's settings; daemons only say whether they took them.
//! Never: close the old plan's sockets before every daemon has answered or the time is over.

use std::collections::HashSet;
use std::io;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::sync::oneshot;

use super::service::Service;
use super::{Instance, Phase, Supervisor, notify};
use crate::admin::{Answer, Response};
use crate::bind::{Bound, obtain};
use crate::error::Error;
use crate::logging;
use crate::plan::{Daemon, Plan};

/// How long daemons may take to acknowledge; afterwards old sockets are closed all the same.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_secs(30);

/// A reload whose daemons have not all answered yet.
pub(super) struct Reloading {
    pub(super) waiting: HashSet<Instance>,
    pub(super) errors: Vec<String>,
    pub(super) until: Instant,
    /// Sockets of the old plan only: closed, and their paths removed, with this.
    _old: Vec<Bound>,
    replies: Vec<oneshot::Sender<Answer>>,
    /// Another reload was asked for meanwhile, by these (none for a signal).
    again: Option<Vec<oneshot::Sender<Answer>>>,
}

impl Reloading {
    /// Answers everybody who waits.
    pub(super) fn answer(self, answer: &Answer) {
        for reply in self.replies.into_iter().chain(self.again.unwrap_or_default()) {
            let _ = reply.send(answer.clone());
        }
    }
}

impl<P: FnMut() -> anyhow::Result<Plan>> Supervisor<P> {
    pub(super) fn reload(&mut self, reply: Option<oneshot::Sender<Answer>>) {
        if let Phase::Stopping { .. } = self.phase {
            if let Some(reply) = reply {
                let _ = reply.send(Err("the supervisor is stopping".to_owned()));
            }
            return;
        }
        if let Some(reloading) = &mut self.reloading {
            reloading.again.get_or_insert_default().extend(reply);
            return;
        }
        self.reload_for(reply.into_iter().collect());
    }

    fn reload_for(&mut self, replies: Vec<oneshot::Sender<Answer>>) {
        tracing::info!("reloading");
        match NotifyState::monotonic_usec_now() {
            Ok(now) => notify(&[NotifyState::Reloading, now]),
            Err(error) => tracing::debug!(%error, "the service manager cannot be told"),
        }
        match self.take_on_new_plan() {
            Ok((waiting, errors, old)) => {
                let until = Instant::now() + ACKNOWLEDGE_WITHIN;
                self.reloading = Some(Reloading { waiting, errors, until, _old: old, replies, again: None });
            }
            Err(error) => {
                super::report(&error);
                let text = format!("{error:#}");
                tracing::error!("reload refused, everything stays as it was");
                self.last_reload_error = Some(text.clone());
                for reply in replies {
                    let _ = reply.send(Err(text.clone()));
                }
                notify(&[NotifyState::Ready]);
            }
        }
    }

    /// First everything that can fail, then everything that changes something.
    fn take_on_new_plan(&mut self) -> anyhow::Result<(HashSet<Instance>, Vec<String>, Vec<Bound>)> {
        let plan = (self.planner)()?;
        check_roles(&plan, |role| self.daemons.contains(&role))?;
        check_ids(&plan)?;
        let have: Vec<Bound> = self
            .services
            .iter()
            .flat_map(|service| &service.sockets)
            .map(|(_, bound)| bound.clone())
            .collect();
        let specs: Vec<_> = plan.daemons.iter().flat_map(|daemon| &daemon.sockets).collect();
        let sockets = obtain(&specs, &have, &mut self.activated).map_err(Error::Bind)?;
        let mut errors = Vec::new();
        if plan.control_socket != self.control_socket || plan.pid_file != self.pid_file {
            errors.push(
                "the admin socket and the pid file stay where they are until the next start".to_owned(),
            );
        }
        let wanted: Vec<_> = specs.iter().map(|spec| spec.bind.clone()).collect();
        let log = plan.log.clone();
        let mut next = services(plan, sockets)?;
        // The last that can fail: a refused reload leaves the log as it was.
        if let Some(log) = &log {
            logging::init(log).map_err(anyhow::Error::msg)?;
        }

        // From here on nothing is undone.
        for ((_, bound), wanted) in next.iter_mut().flat_map(|one| &mut one.sockets).zip(&wanted) {
            match bound.with_rights(wanted) {
                Ok(changed) => *bound = changed,
                Err(error) => errors.push(error.to_string()),
            }
        }
        let old = have.into_iter().filter(|old| !wanted.iter().any(|bind| old.is_at(bind))).collect();
        let waiting = self.adopt(next, &mut errors);
        Ok((waiting, errors, old))
    }

    /// Gives every daemon its new configuration. Returns whose acknowledgement is to be waited for.
    fn adopt(&mut self, next: Vec<Service>, errors: &mut Vec<String>) -> HashSet<Instance> {
        let now = Instant::now();
        let mut waiting = HashSet::new();
        let mut former = std::mem::take(&mut self.services);
        for mut new in next {
            let Some(at) = former.iter().position(|old| old.role == new.role) else {
                tracing::info!(role = new.role, "new in the configuration; starting it");
                new.start_at = Some(now);
                self.services.push(new);
                continue;
            };
            let mut service = former.swap_remove(at);
            let same = service.identity.will_do_for(&new.identity);
            let files = service.identity.files().to_vec();
            service.adopt(new);
            if same {
                // What the process really has, so that the next plan is compared with that.
                service.identity.keep_files(files);
            }
            if !same {
                tracing::info!(role = service.role, "its user or limits have changed; starting it anew");
                service.stop(now);
            } else if let Some(process) = service.process.as_ref().filter(|one| one.kill_at.is_none()) {
                let told = service
                    .reload_message()
                    .map_err(|error| error.to_string())
                    .and_then(|(message, fds)| process.tell(&message, fds));
                match told {
                    Ok(()) => {
                        waiting.insert(process.instance);
                    }
                    Err(error) => errors.push(format!("{} cannot be told: {error}", service.role)),
                }
            }
            self.services.push(service);
        }
        for mut service in former {
            service.leaving = true;
            service.start_at = None;
            service.stop(now);
            if service.process.is_some() {
                tracing::info!(role = service.role, "no longer in the configuration; stopping it");
                self.services.push(service);
            }
        }
        waiting
    }

    /// Ends a reload that everybody has acknowledged, or that took too long.
    pub(super) fn finish_reload(&mut self, now: Instant) {
        let done = |reloading: &mut Reloading| reloading.waiting.is_empty() || reloading.until <= now;
        let Some(mut reloading) = self.reloading.take_if(done) else { return };
        for instance in reloading.waiting.drain() {
            let late = self
                .services
                .iter()
                .find(|service| service.process.as_ref().is_some_and(|process| process.instance == instance));
            let role = late.map_or("a daemon", |service| service.role);
            reloading.errors.push(format!("{role} did not acknowledge the reload"));
        }
        self.reloads += 1;
        let answer = if reloading.errors.is_empty() {
            self.last_reload_error = None;
            tracing::info!("reloaded");
            Ok(Response::Done)
        } else {
            for error in &reloading.errors {
                tracing::error!("reload: {error}");
            }
            let text = reloading.errors.join("\n");
            self.last_reload_error = Some(text.clone());
            Err(text)
        };
        let again = reloading.again.take();
        reloading.answer(&answer);
        notify(&[NotifyState::Ready]);
        if let Some(replies) = again {
            self.reload_for(replies);
        }
    }
}

/// Whether this plan can be run by this program and this user at all.
pub(super) fn check(plan: &Plan, daemons: &[Daemon]) -> Result<(), Error> {
    check_roles(plan, |role| daemons.iter().any(|daemon| daemon.role == role))?;
    check_ids(plan)
}

fn check_roles(plan: &Plan, known: impl Fn(&str) -> bool) -> Result<(), Error> {
    for (index, daemon) in plan.daemons.iter().enumerate() {
        let twice = plan.daemons.iter().take(index).any(|other| other.role == daemon.role);
        if twice || !known(daemon.role) {
            return Err(Error::UnknownRole(daemon.role.to_owned()));
        }
    }
    Ok(())
}

fn check_ids(plan: &Plan) -> Result<(), Error> {
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    for daemon in &plan.daemons {
        let Some(ids) = &daemon.ids else { continue };
        if uid != 0 && (ids.uid, ids.gid) != (uid, gid) {
            return Err(Error::NotRoot { role: daemon.role.to_owned(), uid: ids.uid });
        }
    }
    Ok(())
}

/// The plan's daemons with their sockets, which are in the plan's order.
pub(super) fn services(plan: Plan, sockets: Vec<Bound>) -> io::Result<Vec<Service>> {
    let grace = if plan.grace.is_zero() { super::DEFAULT_GRACE } else { plan.grace };
    let mut sockets = sockets.into_iter();
    let mut services = Vec::with_capacity(plan.daemons.len());
    for daemon in plan.daemons {
        let own = sockets.by_ref().take(daemon.sockets.len()).collect();
        services.push(Service::new(daemon, own, grace, plan.log.clone())?);
    }
    Ok(services)
}
