"""Tests, in tiers: unit (no servers), integration (one part with real servers), e2e (the whole), faults (kills)."""
