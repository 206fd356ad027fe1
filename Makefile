# quic_dist: `make help` tells what there is. Every target first installs what it needs (Debian packages, Rust) if it is missing.

.DEFAULT_GOAL := build
.PHONY: build nif demo test bench help clean tools

build: tools
	rebar3 compile

nif: tools
	scripts/build-nif

demo: build
	scripts/demo

test: tools
	scripts/test

bench: build
	scripts/bench

tools:
	@scripts/system-packages
	@scripts/rust-toolchain

clean:
	rm -rf _build target .otp27 logs priv/*.so priv/.*.so erl_crash.dump

help:
	@echo 'make        build everything, run nothing (make build is the same)'
	@echo 'make demo   build, then run three nodes over QUIC and show what they do (under a minute once built)'
	@echo 'make test   build, then run every check and every test; its last line counts them'
	@echo 'make bench  build, then measure against inet_tcp, inet_tls and the engine alone (15 minutes); writes docs/benchmarks.md'
	@echo 'make nif    build the Rust library alone, into priv/'
	@echo 'make clean  delete what was built'
	@echo
	@echo 'scripts/test STAGE...      run some stages of make test (scripts/test --list names them)'
	@echo 'scripts/bench ROW...       run some rows of make bench (scripts/bench --list names them; its head tells more)'
	@echo 'scripts/otp27 run COMMAND  run a command under OTP 27, in a Debian 13 root that the script makes'
	@echo 'scripts/otp-suite SUITE    run one of OTP'"'"'s own test suites over QUIC'
