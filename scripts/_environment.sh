# Sourced by setup.sh, demo.sh and test.sh after `set -euo pipefail`: makes $root/.venv if .venv is missing or out of
# date, and sets $root, $venv and $python.
# shellcheck shell=bash

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
python=$venv/bin/python
extras=demo,test,dev,fast,remote,report,export,track,heic

_is_recent() { # _is_recent PYTHON: whether this Python runs and is 3.11 or newer
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

_find_python() { # Prints the first Python on the PATH that is new enough.
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null && _is_recent "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    if command -v python3 >/dev/null; then
        echo "error: python3 is $(python3 --version 2>&1), too old; install Python 3.11 or newer" >&2
    else
        echo "error: there is no python3 on the PATH; install Python 3.11 or newer" >&2
    fi
    return 1
}

_stamp() { # The place of .venv and the files that .venv depends on. A moved environment does not work.
    printf '%s\n%s\n' "$root" "$extras"
    cksum "$root/pyproject.toml" "$root/setup.py" "$root/constraints.txt"
}

_show_progress() { # On a terminal, shows the latest line of pip in one line.
    if [ -t 2 ]; then
        while IFS= read -r line; do printf '\r\033[K%.78s' "$line" >&2; done
        printf '\r\033[K' >&2
    else
        cat >/dev/null
    fi
}

_is_usable() { # Whether .venv runs, was made for this place, and has no interrupted installation.
    _is_recent "$python" && [ ! -e "$venv/.installing" ] &&
        { [ ! -e "$venv/.stamp" ] || [ "$(head -n 1 "$venv/.stamp")" = "$root" ]; }
}

_make_environment() {
    local maker
    if ! _is_usable; then
        if [ -L "$venv" ]; then # --clear would empty the target of the link, which others may use.
            echo "error: $venv is a link to an environment that does not work here; remove the link" >&2
            return 1
        fi
        maker=$(_find_python)
        if ! "$maker" -c 'import venv, ensurepip' 2>/dev/null; then
            echo "error: $maker lacks its venv module; on Debian and Ubuntu: apt install python3-venv" >&2
            return 1
        fi
        "$maker" -m venv --clear "$venv"
    fi
    rm -f "$venv/.stamp"
    touch "$venv/.installing"
    echo "Installing PyTorch and the other packages into $venv (7 GB; some minutes, only once) ..." >&2
    if ! "$python" -m pip install --progress-bar off --constraint "$root/constraints.txt" --editable "${root}[$extras]" 2>&1 |
        tee "$venv/pip.log" | _show_progress; then
        tail -n 20 "$venv/pip.log" >&2
        echo "error: the installation failed, see $venv/pip.log; the same command tries again" >&2
        return 1
    fi
    rm "$venv/.installing"
    _stamp >"$venv/.stamp"
}

_ensure_environment() {
    [ "$(cat "$venv/.stamp" 2>/dev/null)" != "$(_stamp)" ] || [ ! -x "$python" ] || return 0
    _make_environment
}

# One set-up at a time. The lock is on an existing file, which is opened to append and never written.
exec 9>>"$root/constraints.txt"
if command -v flock >/dev/null; then
    flock --nonblock 9 || { echo "Waiting for another set-up of $venv ..." >&2 && flock 9; }
fi
_ensure_environment
exec 9>&-
