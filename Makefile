# The commands that the README names; each is one command that works without make, too.
.PHONY: demo test unit check texts graph bench fuzz interop soak api screenshots deploy-check release faults failover rolling hostile \
  alerts imap

demo:
	./mailgroup demo

test:
	./mailgroup test

# Tests that need no server, in less than a minute.
unit:
	./mailgroup test tests/unit -q -n 2 --dist loadfile

check:
	.ci/run check

# Brings the files of the languages up to date with the texts of the code, and lists what is not translated.
texts:
	./mailgroup test --setup
	.venv/bin/python -m deploy.texts write

# The packages of shared/ and services/, what each imports, and whether that goes one way.
graph:
	./mailgroup test --setup
	.venv/bin/python -m deploy.graph

bench:
	./mailgroup bench

fuzz:
	./mailgroup test --setup
	.venv/bin/python -m pip install -q --no-deps --require-hashes -r requirements-fuzz.lock
	.venv/bin/python -m tests.fuzz.explore

deploy-check:
	./mailgroup deploy-check

# The offline part of a release, into dist/: TAG=v0.1.0 compares the version with the tag.
release:
	./mailgroup test --setup
	.venv/bin/python -m deploy.release $(if $(TAG),--tag $(TAG))

interop:
	./mailgroup interop

MINUTES = 30
soak:
	./mailgroup test --setup
	.venv/bin/python -m bench.soak --minutes $(MINUTES)

api:
	API_LONG=1 ./mailgroup test tests/integration/console/test_api.py -k whatever

screenshots:
	SCREENSHOTS=dist/screenshots ./mailgroup test tests/e2e/test_pages.py tests/e2e/test_console.py

# Ten thousand mails each way through two hundred kills and all else that goes wrong; then how soon mail flows again after
# each single fault. Needs root, half an hour. SEED=n makes the same choices again.
faults:
	./mailgroup test --setup
	.venv/bin/python -m tests.faults.drive $(if $(SEED),--seed $(SEED))
	.venv/bin/python -m tests.faults.recovery
	FAULTS_LONG=1 ./mailgroup test tests/faults/test_full_disk.py tests/faults/test_read_only.py -q -s

# Failovers while mail is under way: two PostgreSQL servers, with a synchronous standby and with one that lags; three
# RabbitMQ nodes. Needs root, ten minutes. SEED=n offers the same mails again.
failover:
	./mailgroup test --setup
	.venv/bin/python -m tests.failover.drive $(if $(SEED),--seed $(SEED))

# Every service is replaced by a new version with a migration while mail clients work: two replicas as Kubernetes does it,
# then one as docker compose does it. Needs root, ten minutes.
rolling:
	./mailgroup test --setup
	.venv/bin/python -m tests.rolling.run

# Two thousand of the worst mails that an outsider can write, and the worst headers of a user: what honest mail, pages, memory
# and event loops notice. Needs root, some minutes.
hostile:
	./mailgroup test --setup
	.venv/bin/python -m tests.faults.hostile

# Every alert of Prometheus fires and clears on a running system, with shorter times. Needs root, ten minutes.
alerts:
	./mailgroup alerts

# The same random streams of IMAP commands to imap_out and to Dovecot: the answers are the same, but for the list in
# tests/imap_oracle/differences.py. Needs root, half a second a stream. SEED=n begins with
# another stream, ROUNDS=n runs so many.
imap:
	./mailgroup test --setup
	.venv/bin/python -m tests.imap_oracle.run --seed $(or $(SEED),1) --rounds $(or $(ROUNDS),100)
