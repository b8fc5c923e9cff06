"""What an adapter is worth and what it does harm with: suites, judges, generation, lm-eval."""
