#!/usr/bin/env bash
# install.sh PACKAGE[=COMMAND]...: installs those of the Debian packages that are missing. One
# whose command is in /usr/bin is not: there are others who package npm, Java and Cargo.
set -euo pipefail

missing=()
for package in "$@"; do
	case $package in *=*)
		[ ! -x "/usr/bin/${package#*=}" ] || continue
		package=${package%=*}
		;;
	esac
	if ! dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed'; then
		missing+=("$package")
	fi
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
	echo "missing packages: ${missing[*]}; as root: apt-get install ${missing[*]}" >&2
	exit 1
fi
echo "installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# nginx must not start a server of the host's. What is only for tests need not be on the disk before the next package is unpacked.
apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-unsafe-io "${missing[@]}" >/dev/null
