#!/bin/sh
# Makes a role that agent can assume for runs: one bucket, read-only.
#
#   iam.sh PRINCIPAL BUCKET [ROLE]
#
# PRINCIPAL is the ARN of the IAM user or role that agent has on its host. Needs the
# AWS CLI with an identity that may create roles. Running it again changes nothing
# but ends with an error, since the role exists. EXTERNAL_ID chooses the external id;
# otherwise it is made.
#
# To undo it:
#   aws iam delete-role-policy --role-name ROLE --policy-name ReadOneBucket
#   aws iam delete-role --role-name ROLE
set -eu

if [ $# -lt 2 ] || [ $# -gt 3 ]; then
	echo "usage: iam.sh PRINCIPAL BUCKET [ROLE]" >&2
	exit 2
fi
principal=$1
bucket=$2
role=${3:-AgentRole}
external_id=${EXTERNAL_ID:-agentops-$(od -An -N12 -tx1 /dev/urandom | tr -d ' \n')}
partition=$(echo "$principal" | cut -d: -f2)

# Who may assume it: this principal alone, with the external id, for sessions named
# as agent names them.
trust=$(cat <<JSON
{
  "Version": "2012-10-17",
  "Statement": [
    {
      "Effect": "Allow",
      "Principal": {"AWS": "$principal"},
      "Action": "sts:AssumeRole",
      "Condition": {
        "StringEquals": {"sts:ExternalId": "$external_id"},
        "StringLike": {"sts:RoleSessionName": "agentops-*"}
      }
    }
  ]
}
JSON
)

# What it may do: list one bucket and read what is in it.
permissions=$(cat <<JSON
{
  "Version": "2012-10-17",
  "Statement": [
    {
      "Effect": "Allow",
      "Action": ["s3:ListBucket", "s3:GetBucketLocation"],
      "Resource": "arn:$partition:s3:::$bucket"
    },
    {
      "Effect": "Allow",
      "Action": "s3:GetObject",
      "Resource": "arn:$partition:s3:::$bucket/*"
    }
  ]
}
JSON
)

arn=$(aws iam create-role \
	--role-name "$role" \
	--description "Assumed by agent for its runs" \
	--max-session-duration 3600 \
	--assume-role-policy-document "$trust" \
	--query Role.Arn --output text)
aws iam put-role-policy \
	--role-name "$role" \
	--policy-name ReadOneBucket \
	--policy-document "$permissions"

echo "IAM takes some seconds until the role can be assumed. Then:"
echo "  agent grant aws --role $arn --external-id $external_id"
