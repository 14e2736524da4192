"""The parts of the conformance suite, one promise of the seam after the other."""
