# Two commands for people: `make run` and `make test`. Everything else serves them.
#
# Both install what is missing with apt-get (as root, or through sudo) and say so in one line;
# with everything in place they install nothing.

CARGO ?= cargo
ARGS  ?=
SUDO  := $(shell [ "$$(id -u)" = 0 ] || command -v sudo)

.PHONY: run build test fuzz soak bench lint deny peers headers generated install clean

run: headers
	$(CARGO) run --release --locked -- run $(ARGS)

build: headers
	$(CARGO) build --release --locked

# Unit, scenario and interop tests, then formatting, lints, docs, licences and sources.
test: headers peers
	tests/run-all

lint: headers
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked

# Seconds each fuzz target runs; the committed corpus is always replayed in full.
FUZZ_SECONDS ?= 60
fuzz: headers
	FUZZ_SECONDS=$(FUZZ_SECONDS) tests/fuzz/run

deny:
	@command -v cargo-deny >/dev/null || { echo "installing cargo-deny (checks licences and sources)"; \
	  $(CARGO) install --locked --debug --version '^0.20' cargo-deny; }
	$(CARGO) deny --locked --all-features check licenses bans sources

# What the build links against.
headers:
	@conf/packages build $(SUDO)

# The mail programs that the tests drive.
peers:
	@conf/packages test $(SUDO)

# Rewrite the files that are generated from the types (sample, reference, man pages, completions).
generated: headers
	POSTERN_WRITE_GENERATED=1 $(CARGO) test --locked -p conf generated

# Aborted exchanges and connections against a running stack: memory and descriptors stay flat (ARGS as above).
soak: headers
	$(CARGO) run --release --locked --example soak -- $(ARGS)

# Puts everything in its place: `make build`, then (as root) `make install`. Nothing is built, started or enabled here.
# Packages set DESTDIR and PREFIX=/usr. What an administrator may have changed (below /etc) is not replaced.
PREFIX   ?= /usr/local
BINDIR   ?= $(PREFIX)/bin
MANDIR   ?= $(PREFIX)/share/man
DOCDIR   ?= $(PREFIX)/share/doc/postern
UNITDIR  ?= $(PREFIX)/lib/systemd/system
# These two are read from /usr/lib only, whatever the prefix.
SYSUSERSDIR ?= /usr/lib/sysusers.d
TMPFILESDIR ?= /usr/lib/tmpfiles.d
SYSCONFDIR  ?= /etc
BINARY   ?= $(or $(CARGO_TARGET_DIR),target)/release/postern
KEEP = install_kept() { [ -e "$$3" ] || install -D -m "$$1" "$$2" "$$3"; }; install_kept

install:
	@[ -x "$(BINARY)" ] || { echo "$(BINARY) is not there: run \`make build\` first" >&2; exit 1; }
	install -D -m 755 "$(BINARY)" "$(DESTDIR)$(BINDIR)/postern"
	ln -sf postern "$(DESTDIR)$(BINDIR)/auth-daemon"
	for unit in postern.service postern.socket postern-auth.service postern-auth.socket; do \
	  install -D -m 644 conf/systemd/$$unit "$(DESTDIR)$(UNITDIR)/$$unit" && \
	  sed -i 's|/usr/bin/postern|$(BINDIR)/postern|g' "$(DESTDIR)$(UNITDIR)/$$unit" || exit 1; done
	install -D -m 644 conf/sysusers.d/postern.conf "$(DESTDIR)$(SYSUSERSDIR)/postern.conf"
	install -D -m 644 conf/tmpfiles.d/postern.conf "$(DESTDIR)$(TMPFILESDIR)/postern.conf"
	@$(KEEP) 644 conf/pam.d/postern "$(DESTDIR)$(SYSCONFDIR)/pam.d/postern"
	@$(KEEP) 644 conf/fail2ban/filter.d/postern.conf "$(DESTDIR)$(SYSCONFDIR)/fail2ban/filter.d/postern.conf"
	@# Active once they are there, so these wait for the administrator.
	@for file in $$(cd conf && find fail2ban/jail.d crowdsec grafana -type f); do \
	  install -D -m 644 conf/$$file "$(DESTDIR)$(DOCDIR)/examples/$$file" || exit 1; done
	install -d -m 755 "$(DESTDIR)$(SYSCONFDIR)/postern" "$(DESTDIR)$(MANDIR)/man1"
	install -D -m 644 conf/postern.toml "$(DESTDIR)$(DOCDIR)/examples/postern.toml"
	install -D -m 644 conf/systemd/one-account.conf "$(DESTDIR)$(DOCDIR)/examples/one-account.conf"
	install -D -m 755 conf/openrc/postern "$(DESTDIR)$(DOCDIR)/examples/postern.openrc"
	install -m 644 -t "$(DESTDIR)$(DOCDIR)" docs/*.md CHANGELOG.md
	"$(BINARY)" man --folder "$(DESTDIR)$(MANDIR)/man1"
	install -d "$(DESTDIR)$(PREFIX)/share/bash-completion/completions" \
	  "$(DESTDIR)$(PREFIX)/share/zsh/site-functions" "$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d"
	"$(BINARY)" completions bash >"$(DESTDIR)$(PREFIX)/share/bash-completion/completions/postern"
	"$(BINARY)" completions zsh >"$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_postern"
	"$(BINARY)" completions fish >"$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/postern.fish"
	@[ -n "$(DESTDIR)" ] || echo "Installed. Next: systemd-sysusers && systemd-tmpfiles --create, then docs/service-files.md"

# Beside Dovecot, Postfix and saslauthd, in turn in one run; rewrites docs/benchmarks.md. About six minutes after the
# build; ARGS=--long takes about three quarters of an hour, ARGS='--only GROUP' one group of rows (ARGS=--help lists
# them). Needs root: the peers switch accounts.
bench: headers
	@conf/packages bench $(SUDO)
	$(CARGO) build --release --locked -p postern -p postern-bench
	$(SUDO) $${CARGO_TARGET_DIR:-target}/release/postern-bench $(ARGS)

clean:
	$(CARGO) clean
