# The commands that the README names; each is one command that works without make, too.
.PHONY: demo test check bench

demo:
	./mailgroup demo

test:
	./mailgroup test

check:
	.ci/run check

bench:
	./mailgroup bench
