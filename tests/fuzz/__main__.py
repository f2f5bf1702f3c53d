"""`python -m tests.fuzz`; what it runs stands in a module that worker processes can import."""

from tests.fuzz.long_run import main

main()
