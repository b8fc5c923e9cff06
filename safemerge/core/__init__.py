"""Pure tensor mathematics of SafeMERGE: no files, environment, logging, clock or global random state."""
