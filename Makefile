# The commands that the README names; each is one command that works without make, too.
.PHONY: demo test check bench fuzz interop soak deploy-check

demo:
	./mailgroup demo

test:
	./mailgroup test

check:
	.ci/run check

bench:
	./mailgroup bench

fuzz:
	./mailgroup test --version
	.venv/bin/python -m pip install -q --no-deps --require-hashes -r requirements-fuzz.lock
	.venv/bin/python -m tests.fuzz.explore

deploy-check:
	./mailgroup test --version
	.venv/bin/python -m deploy.check

interop:
	./mailgroup interop

MINUTES = 30
soak:
	./mailgroup test --version
	.venv/bin/python -m bench.soak --minutes $(MINUTES)
