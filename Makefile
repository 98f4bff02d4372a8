# Two commands for people: `make run` and `make test`. Everything else serves them.
#
# Both install what is missing with apt-get (as root, or through sudo) and say so in one line;
# with everything in place they install nothing.

CARGO ?= cargo
ARGS  ?=
SUDO  := $(shell [ "$$(id -u)" = 0 ] || command -v sudo)

.PHONY: run build test fuzz soak lint deny peers headers generated clean

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

clean:
	$(CARGO) clean
