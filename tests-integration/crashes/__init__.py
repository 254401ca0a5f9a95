"""Workers of a bus that are killed at random moments, and the proof that nothing was lost or happened twice."""
