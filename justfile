# Short names for what CONTRIBUTING.md describes; each works without `just` too.

# list the recipes
default:
    @just --list

# virtual environment with locked dependencies
setup:
    scripts/setup

# tests; arguments go to pytest, `--long` adds the slow ones
test *arguments:
    scripts/test {{arguments}}

# what CI runs
ci:
    .ci/run

# lint, format, types and import direction, repaired where a tool can
fix: setup
    .venv/bin/ruff check --fix .
    .venv/bin/ruff format .
    .venv/bin/mypy
    .venv/bin/lint-imports

# compile the locks again; `just lock --upgrade` takes newer versions
lock *arguments:
    scripts/lock {{arguments}}

# policyd at work on the example fleet
demo *arguments:
    scripts/demo {{arguments}}
