# The virtual environment of the tests, made once for each list of dependencies and Python: sourced by scripts/test and
# scripts/sim. Sets `python`; expects `checkout`; says what it does by `say`.
# shellcheck shell=bash disable=SC2034,SC2154

CACHE=${SPARKD_TEST_CACHE:-/var/cache/sparkd-test}

# One virtual environment for each list of dependencies and Python; made beside and renamed when whole, so that an
# interrupted run leaves none that looks finished. (A renamed one works by its python, not by its scripts.)
make_venv() {
    local key
    key=$({ /usr/bin/python3 --version; cat "$checkout/pyproject.toml"; } | sha256sum | cut -c1-12)
    venv=$CACHE/venv-$key
    python=$venv/bin/python
    [ ! -x "$python" ] || return 0
    say "installing sparkd's Python dependencies in $venv (once)"
    rm -rf "$venv.new"
    mkdir -p "$CACHE"
    /usr/bin/python3 -m venv "$venv.new"
    dependencies "project.dependencies" "project.optional-dependencies.test" >"$venv.new/requirements"
    "$venv.new/bin/python" -m pip install --quiet --disable-pip-version-check --no-input -r "$venv.new/requirements"
    mv "$venv.new" "$venv"
}

dependencies() {
    /usr/bin/python3 - "$checkout/pyproject.toml" "$@" <<'PYTHON'
import sys, tomllib
with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)
for place in sys.argv[2:]:
    value = project
    for key in place.split("."):
        value = value[key]
    print(*value, sep="\n")
PYTHON
}
