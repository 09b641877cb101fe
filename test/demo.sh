#!/usr/bin/env bash
# The main job, against the bundled stand-in for AWS: everything stays on loopback.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(id -u)" -ne 0 ]; then
	echo "the demo makes namespaces and loads eBPF: sudo make demo" >&2
	exit 1
fi
root=$PWD
demo=$(mktemp -d)
mkdir "$demo/workspace"
coproc STUB { exec bin/awsstub --ca "$demo/ca.pem"; }
stub_pid=$STUB_PID
finish() {
	kill "$stub_pid" 2>/dev/null || true
	wait "$stub_pid" 2>/dev/null || true
	rm -rf "$demo"
}
trap finish EXIT
read -r -u "${STUB[0]}" ready
field() { sed -E "s/.*\"$1\":\"([^\"]*)\".*/\1/" <<<"$ready"; }

# The host's side: its own AWS identity, here that of the stand-in, and state of
# the demo's own.
unset "${!AWS_@}"
export AGENTOPS_STATE_DIR=$demo/state AGENTOPS_RUN_DIR=$demo/run
export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_ENDPOINT_URL_STS
AWS_ACCESS_KEY_ID=$(field access_key_id)
AWS_SECRET_ACCESS_KEY=$(field secret_access_key)
AWS_ENDPOINT_URL_STS=$(field url)
export AWS_EC2_METADATA_DISABLED=true AWS_CONFIG_FILE=$demo/none AWS_SHARED_CREDENTIALS_FILE=$demo/none

say() { printf '\n\033[1m# %s\033[0m\n' "$*"; }
show() {
	printf '$ %s\n' "${*@Q}"
	"$@"
}
cd "$demo/workspace"
PATH=$root:$PATH
outside=(--resolve "*=$(field tls)" --upstream-ca "$demo/ca.pem")

say "A grant: the configuration of a role, proven and stored, no secret"
show agent grant aws --role arn:aws:iam::123456789012:role/AgentRole

say "In a run, the AWS CLI has the role's short-lived credentials"
show agent run --grant aws "${outside[@]}" -- /usr/bin/aws sts get-caller-identity
show agent run --grant aws "${outside[@]}" -- /usr/bin/aws s3 ls

say "Any program's HTTPS is seen, without a setting of its own"
show agent run "${outside[@]}" -- curl -sS https://www.example.com/

say "What the policy does not allow is refused, and says why"
show agent run --name demo --grant aws --strict "${outside[@]}" -- \
	sh -c '/usr/bin/aws s3 ls; curl -sS https://elsewhere.example/'

say "The audit of that run, verified"
show agent audit demo
