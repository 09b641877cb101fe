package grant

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

const roleARN = "arn:aws:iam::123456789012:role/AgentRole"

// wantError checks for an *Error with its parts, and that both are one line.
func wantError(t *testing.T, err error, message, hint string) {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatalf("error is %v, want an *Error about %q", err, message)
	}
	if !strings.Contains(e.Error(), message) {
		t.Errorf("error is %q, want %q in it", e, message)
	}
	if e.Hint == "" || !strings.Contains(e.Hint, hint) {
		t.Errorf("hint is %q, want %q in it", e.Hint, hint)
	}
	if strings.ContainsAny(e.Error()+e.Hint, "\n\r") {
		t.Errorf("more than one line: %q, %q", e, e.Hint)
	}
}

func TestRoleARN(t *testing.T) {
	for _, test := range []struct{ arn, partition, account, path, name string }{
		{roleARN, "aws", "123456789012", "/", "AgentRole"},
		{"arn:aws:iam::000000000001:role/a", "aws", "000000000001", "/", "a"},
		{"arn:aws-cn:iam::123456789012:role/team/R", "aws-cn", "123456789012", "/team/", "R"},
		{"arn:aws-us-gov:iam::123456789012:role/R", "aws-us-gov", "123456789012", "/", "R"},
		{"arn:aws-iso:iam::123456789012:role/R", "aws-iso", "123456789012", "/", "R"},
		{"arn:aws-iso-b:iam::123456789012:role/R", "aws-iso-b", "123456789012", "/", "R"},
		{"arn:aws-iso-e:iam::123456789012:role/R", "aws-iso-e", "123456789012", "/", "R"},
		{"arn:aws-iso-f:iam::123456789012:role/R", "aws-iso-f", "123456789012", "/", "R"},
		{"arn:aws-eusc:iam::123456789012:role/R", "aws-eusc", "123456789012", "/", "R"},
		{"arn:aws:iam::123456789012:role/a:b:c/d::e/R", "aws", "123456789012", "/a:b:c/d::e/", "R"},
		{"arn:aws:iam::123456789012:role/user/assumed-role/R", "aws", "123456789012", "/user/assumed-role/", "R"},
		{"arn:aws:iam::123456789012:role/A_b+c=d,e.f@g-9", "aws", "123456789012", "/", "A_b+c=d,e.f@g-9"},
		{"arn:aws:iam::123456789012:role/" + strings.Repeat("n", 64), "aws", "123456789012", "/", strings.Repeat("n", 64)},
		{"arn:aws:iam::123456789012:role/" + strings.Repeat("p", 510) + "/R", "aws", "123456789012", "/" + strings.Repeat("p", 510) + "/", "R"},
	} {
		got, err := parseRole(test.arn)
		if err != nil {
			t.Errorf("%s: %v", test.arn, err)
			continue
		}
		if got.partition.Name != test.partition || got.account != test.account || got.path != test.path || got.name != test.name {
			t.Errorf("%s: got %+v", test.arn, got)
		}
		if got.String() != test.arn {
			t.Errorf("%s: written back as %s", test.arn, got)
		}
	}
}

func TestRoleARNRefused(t *testing.T) {
	const likely = "arn:aws:iam::123456789012:role/AgentRole"
	for _, test := range []struct{ name, arn, message, hint string }{
		{"empty", "", "is not an ARN", "aws iam get-role"},
		{"a name", "AgentRole", "is not an ARN", "arn:aws:iam::123456789012:role/NAME"},
		{"five parts", "arn:aws:iam::123456789012", "is not an ARN", "role/NAME"},
		{"upper case", "ARN:aws:iam::123456789012:role/R", "is not an ARN", ""},
		{"space before", " " + roleARN, "is not an ARN", ""},
		{"space after", roleARN + " ", `the name "AgentRole " is not`, ""},
		{"line feed after", roleARN + "\n", "the name", ""},
		{"partition", "arn:aws-mars:iam::123456789012:role/R", `no partition "aws-mars"`, "aws, aws-cn, aws-us-gov"},
		{"no partition", "arn::iam::123456789012:role/R", `no partition ""`, "aws-cn"},
		{"service", "arn:aws:s3::123456789012:role/R", `the service is "s3"`, "write arn:aws:iam::123456789012:role/R"},
		{"sts session", "arn:aws:sts::123456789012:assumed-role/AgentRole/me", "a session of a role", likely},
		{"iam session", "arn:aws:iam::123456789012:assumed-role/AgentRole/me", "a session of a role", likely},
		{"sts role", "arn:aws:sts::123456789012:role/AgentRole", "an ARN of STS", "role/NAME"},
		{"sts user", "arn:aws:sts::123456789012:federated-user/me", "an ARN of STS", "role/NAME"},
		{"region", "arn:aws:iam:us-east-1:123456789012:role/AgentRole", `a region in it, "us-east-1"`, "leave it out: " + likely + ";"},
		{"region and more", "arn:aws:iam:us-east-1:1:user/x\ny", "a region in it", "role/NAME; the region"},
		{"11 digits", "arn:aws:iam::12345678901:role/R", `"12345678901" is not 12 digits`, "leading zeros"},
		{"13 digits", "arn:aws:iam::1234567890123:role/R", "not 12 digits", ""},
		{"no account", "arn:aws:iam:::role/R", "not 12 digits", ""},
		{"letters", "arn:aws:iam::12345678901a:role/R", "not 12 digits", ""},
		{"other digits", "arn:aws:iam::12345678901٢:role/R", "not 12 digits", ""},
		{"user", "arn:aws:iam::123456789012:user/me", "is a user", "examples/grant-aws"},
		{"group", "arn:aws:iam::123456789012:group/g", "is not a role", ""},
		{"instance profile", "arn:aws:iam::123456789012:instance-profile/p", "is not a role", ""},
		{"root", "arn:aws:iam::123456789012:root", "is not a role", ""},
		{"no slash", "arn:aws:iam::123456789012:role", "no name in it", ""},
		{"empty name", "arn:aws:iam::123456789012:role/", "the name is empty", ""},
		{"empty name after path", "arn:aws:iam::123456789012:role/team/", "the name is empty", ""},
		{"long name", "arn:aws:iam::123456789012:role/" + strings.Repeat("n", 65), "is not 1 to 64", ""},
		{"colon in name", "arn:aws:iam::123456789012:role/a:b", "the name", ""},
		{"space in path", "arn:aws:iam::123456789012:role/a b/R", "the path", ""},
		{"long path", "arn:aws:iam::123456789012:role/" + strings.Repeat("p", 511) + "/R", "longer than 512", ""},
		{"service-linked", "arn:aws:iam::123456789012:role/aws-service-role/ecs.amazonaws.com/R", "service-linked", "role of your own"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := parseRole(test.arn)
			wantError(t, err, test.message, test.hint)
			if a := (AWS{RoleARN: test.arn}); a.Partition().Name != "" || len(a.Hosts()) != 0 {
				t.Errorf("it has partition %q and hosts %q", a.Partition().Name, a.Hosts())
			}
		})
	}
}

func FuzzRoleARN(f *testing.F) {
	for _, seed := range []string{
		roleARN, "arn:aws:iam::123456789012:role/a:b/R", "arn:aws:sts::123456789012:assumed-role/R/s",
		"arn:aws:iam:us-east-1:123456789012:role/R", "arn:aws:iam::12345678901:role/", ":::::", "",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, parse := range []func(string) (iamARN, error){parseRole, parsePolicyARN} {
			got, err := parse(text)
			if err != nil {
				if e, ok := errors.AsType[*Error](err); !ok || e.Hint == "" || strings.ContainsAny(e.Error()+e.Hint, "\n\r\x1b") {
					t.Fatalf("%q: %#v", text, err)
				}
				continue
			}
			if got.String() != text {
				t.Fatalf("%q is read as %q", text, got)
			}
			if got.partition.Name == "" || got.name == "" || strings.ContainsAny(got.name, "/: ") {
				t.Fatalf("%q: %+v", text, got)
			}
		}
	})
}

func TestNewFillsIn(t *testing.T) {
	for partition, region := range map[string]string{
		"aws": "us-east-1", "aws-cn": "cn-northwest-1", "aws-us-gov": "us-gov-west-1", "aws-iso": "us-iso-east-1",
		"aws-iso-b": "us-isob-east-1", "aws-iso-e": "eu-isoe-west-1", "aws-iso-f": "us-isof-south-1", "aws-eusc": "eusc-de-east-1",
	} {
		a, err := New(AWS{RoleARN: "arn:" + partition + ":iam::123456789012:role/R"})
		if err != nil {
			t.Errorf("%s: %v", partition, err)
			continue
		}
		if a.Name != "aws" || a.Region != region || a.SessionDuration != 15*time.Minute || a.Verified != nil {
			t.Errorf("%s: got %+v", partition, a)
		}
	}
	if len(partitions) != 8 {
		t.Errorf("there are %d partitions, 8 are tested", len(partitions))
	}
}

func TestCheckFillsNothing(t *testing.T) {
	wantError(t, AWS{RoleARN: roleARN}.Check(), "name of a grant", "")
	wantError(t, AWS{Name: "a", RoleARN: roleARN}.Check(), "region", "us-east-1")
	wantError(t, AWS{Name: "a", RoleARN: roleARN, Region: "us-east-1"}.Check(), "session duration 0s", "15m to 12h")
}

func TestNewTaken(t *testing.T) {
	for name, a := range map[string]AWS{
		"digit first":       {Name: "0"},
		"every character":   {Name: "a.b_c-9"},
		"longest name":      {Name: strings.Repeat("a", 32)},
		"region to come":    {Region: "mx-central-7"},
		"shortest":          {SessionDuration: 15 * time.Minute},
		"longest":           {SessionDuration: 12 * time.Hour},
		"shortest id":       {ExternalID: "ab"},
		"longest id":        {ExternalID: strings.Repeat("x", 1224)},
		"every kind of id":  {ExternalID: "Az09_+=,.@:/-"},
		"profile":           {Profile: "my team's profile"},
		"policy":            {SessionPolicy: `{"Version":"2012-10-17","Statement":[]}`},
		"Latin-1 in policy": {SessionPolicy: `{"Sid":"é"}`},
		"policy at limit":   {SessionPolicy: `{"a":"` + strings.Repeat("é", maxPolicyLength-8) + `"}`},
		"policies":          {PolicyARNs: []string{"arn:aws:iam::aws:policy/job-function/ViewOnlyAccess", "arn:aws:iam::123456789012:policy/p"}},
		"ten policies":      {PolicyARNs: numbered(10)},
	} {
		a.RoleARN = roleARN
		if _, err := New(a); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func numbered(n int) []string {
	arns := make([]string, n)
	for i := range arns {
		arns[i] = "arn:aws:iam::aws:policy/p" + string(rune('a'+i))
	}
	return arns
}

func TestNewRefused(t *testing.T) {
	for _, test := range []struct {
		name          string
		a             AWS
		message, hint string
	}{
		{"name of the default profile", AWS{Name: "default"}, "cannot have the name", "first grant"},
		{"name with capital", AWS{Name: "Aws"}, `"Aws" cannot be the name`, "a-z 0-9"},
		{"name with dot first", AWS{Name: ".aws"}, "cannot be the name", ""},
		{"name with slash", AWS{Name: "a/b"}, "cannot be the name", ""},
		{"name above", AWS{Name: ".."}, "cannot be the name", ""},
		{"name with space", AWS{Name: "a b"}, "cannot be the name", ""},
		{"name with line feed", AWS{Name: "a\n"}, "cannot be the name", ""},
		{"name too long", AWS{Name: strings.Repeat("a", 33)}, "cannot be the name", ""},
		{"role", AWS{RoleARN: "x"}, "is not an ARN", "get-role"},
		{"region of China", AWS{Region: "cn-north-1"}, "region cn-north-1 is of partition aws-cn, the role of partition aws", "us-east-1"},
		{"region of GovCloud", AWS{Region: "us-gov-west-1"}, "partition aws-us-gov", "us-east-1"},
		{"region of iso", AWS{Region: "us-iso-east-1"}, "partition aws-iso", ""},
		{"region of eusc", AWS{Region: "eusc-de-east-1"}, "partition aws-eusc", ""},
		{"region of the role elsewhere", AWS{RoleARN: "arn:aws-us-gov:iam::123456789012:role/R", Region: "us-east-1"}, "region us-east-1 is of partition aws", "us-gov-west-1"},
		{"no region", AWS{Region: "useast1"}, `"useast1" is not a region`, "us-east-1"},
		{"zone", AWS{Region: "us-east-1a"}, "is not a region", ""},
		{"capital region", AWS{Region: "US-EAST-1"}, "is not a region", ""},
		{"region with host", AWS{Region: "us-east-1.example.com"}, "is not a region", ""},
		{"region with line feed", AWS{Region: "us-east-1\n"}, "is not a region", ""},
		{"negative duration", AWS{SessionDuration: -time.Hour}, "session duration -1h0m0s is out of range", "15m to 12h"},
		{"a second too short", AWS{SessionDuration: 15*time.Minute - time.Second}, "14m59s is out of range", "15m to 12h"},
		{"a second too long", AWS{SessionDuration: 12*time.Hour + time.Second}, "12h0m1s is out of range", "15m to 12h"},
		{"half a second", AWS{SessionDuration: 20*time.Minute + time.Second/2}, "whole seconds", "15m to 12h"},
		{"external id with space", AWS{ExternalID: "my id"}, `external id "my id"`, "2 to 1224"},
		{"external id of one", AWS{ExternalID: "x"}, "external id", "2 to 1224"},
		{"external id too long", AWS{ExternalID: strings.Repeat("x", 1225)}, "external id", "2 to 1224"},
		{"external id not ASCII", AWS{ExternalID: "idé"}, "external id", ""},
		{"external id with line feed", AWS{ExternalID: "id\n"}, "external id", ""},
		{"profile with bracket", AWS{Profile: "a]"}, "AWS profile", "list-profiles"},
		{"profile with line feed", AWS{Profile: "a\nb"}, "AWS profile", ""},
		{"profile of space", AWS{Profile: " "}, "AWS profile", ""},
		{"policy not JSON", AWS{SessionPolicy: "{"}, "not JSON: unexpected end", "IAM policy"},
		{"policy of space", AWS{SessionPolicy: " \n"}, "not JSON", "IAM policy"},
		{"policy of two", AWS{SessionPolicy: "{}{}"}, "not JSON", ""},
		{"policy an array", AWS{SessionPolicy: "[]"}, "not an object", "IAM policy"},
		{"policy a string", AWS{SessionPolicy: `"x"`}, "not an object", ""},
		{"policy null", AWS{SessionPolicy: `null`}, "not an object", ""},
		{"policy beyond Latin-1", AWS{SessionPolicy: `{"Sid":"→"}`}, "'→'", `\uXXXX`},
		{"policy too long", AWS{SessionPolicy: `{"a":"` + strings.Repeat("x", 2041) + `"}`}, "are 2049 characters long together, STS takes 2048", "managed policy"},
		{"policy and ARNs too long", AWS{SessionPolicy: `{"a":"` + strings.Repeat("x", 2030) + `"}`, PolicyARNs: numbered(1)}, "are 2064 characters long together", ""},
		{"eleven policies", AWS{PolicyARNs: numbered(11)}, "11 policy ARNs", "--session-policy"},
		{"policy twice", AWS{PolicyARNs: append(numbered(1), numbered(2)...)}, "given twice", "once"},
		{"policy empty", AWS{PolicyARNs: []string{""}}, "is not an ARN", "arn:aws:iam::aws:policy/NAME"},
		{"policy of partition", AWS{PolicyARNs: []string{"arn:aws-cn:iam::aws:policy/p"}}, "of partition aws-cn, the role of partition aws", ""},
		{"policy of no partition", AWS{PolicyARNs: []string{"arn:x:iam::aws:policy/p"}}, `no partition "x"`, ""},
		{"policy of another account", AWS{PolicyARNs: []string{"arn:aws:iam::210987654321:policy/p"}}, "of account 210987654321, the role of account 123456789012", "own account"},
		{"policy of a service", AWS{PolicyARNs: []string{"arn:aws:s3::aws:policy/p"}}, `the service is "s3"`, ""},
		{"policy with a region", AWS{PolicyARNs: []string{"arn:aws:iam:us-east-1:aws:policy/p"}}, "a region in it", ""},
		{"policy with 11 digits", AWS{PolicyARNs: []string{"arn:aws:iam::12345678901:policy/p"}}, "neither 12 digits nor aws", ""},
		{"policy a role", AWS{PolicyARNs: []string{roleARN}}, "not a managed policy", ""},
		{"policy without name", AWS{PolicyARNs: []string{"arn:aws:iam::aws:policy/"}}, "the name is empty", ""},
		{"policy with a long name", AWS{PolicyARNs: []string{"arn:aws:iam::aws:policy/" + strings.Repeat("n", 129)}}, "is not 1 to 128", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.a.RoleARN == "" {
				test.a.RoleARN = roleARN
			}
			_, err := New(test.a)
			wantError(t, err, test.message, test.hint)
		})
	}
}

func TestNewTakesWhiteSpaceOutOfThePolicy(t *testing.T) {
	given := AWS{RoleARN: roleARN, SessionPolicy: "{\n  \"Sid\": \"a  b<&\"" + strings.Repeat(" ", 3000) + "}\n", PolicyARNs: numbered(2)}
	a, err := New(given)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"Sid":"a  b<&"}`; a.SessionPolicy != want {
		t.Errorf("policy is %s, want %s", a.SessionPolicy, want)
	}
	given.PolicyARNs[0] = "changed"
	if a.PolicyARNs[0] == "changed" {
		t.Error("the grant shares its policy ARNs with the caller")
	}
}

func TestParseDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"15m": 15 * time.Minute, "900s": 15 * time.Minute, "1h30m": 90 * time.Minute, "12h": 12 * time.Hour, "11h59m59s": 12*time.Hour - time.Second,
	} {
		if got, err := ParseDuration(text); err != nil || got != want {
			t.Errorf("%s: got %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"-1h", "0", "14m59s", "12h1s", "abc", "", "900", "15 m", "1d", "900.5s", "9999999h", "99999999999999999999h"} {
		_, err := ParseDuration(text)
		wantError(t, err, "session duration", "15m to 12h")
	}
}

func TestHosts(t *testing.T) {
	for partition, want := range map[string][]string{
		"aws":        {"*.amazonaws.com", "*.api.aws"},
		"aws-cn":     {"*.amazonaws.com.cn"},
		"aws-us-gov": {"*.amazonaws.com"},
		"aws-iso":    {"*.c2s.ic.gov"},
		"aws-iso-b":  {"*.sc2s.sgov.gov"},
		"aws-iso-e":  {"*.cloud.adc-e.uk"},
		"aws-iso-f":  {"*.csp.hci.ic.gov"},
		"aws-eusc":   {"*.amazonaws.eu"},
	} {
		a := AWS{RoleARN: "arn:" + partition + ":iam::123456789012:role/R"}
		if got := a.Hosts(); !slices.Equal(got, want) {
			t.Errorf("%s: hosts are %q, want %q", partition, got, want)
		}
	}
}

// Every region is of one partition alone.
func TestRegions(t *testing.T) {
	for region, want := range map[string]string{
		"us-east-1": "aws", "eu-central-2": "aws", "ap-southeast-5": "aws", "il-central-1": "aws", "cn-north-1": "aws-cn",
		"us-gov-east-1": "aws-us-gov", "us-iso-west-1": "aws-iso", "us-isob-west-1": "aws-iso-b", "eu-isoe-west-1": "aws-iso-e",
		"us-isof-east-1": "aws-iso-f", "eusc-de-east-1": "aws-eusc", "eusc-fr-east-1": "", "xx-east-1": "", "": "",
	} {
		var got []string
		for _, p := range partitions {
			if p.HasRegion(region) {
				got = append(got, p.Name)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s is of %q, want %q", region, got, want)
		}
	}
	if (Partition{}).HasRegion("us-east-1") {
		t.Error("the zero partition has regions")
	}
}
