"""What faces strangers' bytes, judged on any input: ``targets.py`` has the judges, ``test_targets.py`` tries them
briefly, ``python -m tests.fuzz.explore`` (``make fuzz``) searches for long, guided by coverage."""
