"""`make mutants`: faults planted one by one, which the tests must catch."""
