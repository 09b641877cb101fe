package grant

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func newGrant(t *testing.T, a AWS) AWS {
	t.Helper()
	if a.RoleARN == "" {
		a.RoleARN = roleARN
	}
	a, err := New(a)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func save(t *testing.T, s Store, a AWS) {
	t.Helper()
	if err := s.Save(a); err != nil {
		t.Fatal(err)
	}
}

// load reads an AWS grant back.
func load(s Store, name string) (AWS, error) {
	g, err := s.Load(name)
	if err != nil {
		return AWS{}, err
	}
	return g.(AWS), nil
}

func full(t *testing.T) AWS {
	return newGrant(t, AWS{
		Name: "deploy", RoleARN: "arn:aws-cn:iam::123456789012:role/a:b/R", Region: "cn-north-1", SessionDuration: 90 * time.Minute,
		ExternalID: "ticket/1", Profile: "my team's", SessionPolicy: `{"Sid":"a<b>&é"}`, PolicyARNs: []string{"arn:aws-cn:iam::aws:policy/p"},
		Verified: &Verified{Caller: "arn:aws-cn:iam::123456789012:user/me", AssumedRole: "arn:aws-cn:sts::123456789012:assumed-role/R/s", Chained: true, At: time.Date(2026, 11, 23, 17, 12, 0, 0, time.UTC)},
	})
}

func TestStoreKeeps(t *testing.T) {
	s := Store{Dir: filepath.Join(t.TempDir(), "state", "grants")}
	if got, err := s.List(); err != nil || len(got) != 0 {
		t.Fatalf("without a folder: %v, %v", got, err)
	}
	for _, want := range []AWS{full(t), newGrant(t, AWS{})} {
		save(t, s, want)
		got, err := load(s, want.Name)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("stored %+v, loaded %+v", want, got)
		}
	}
	grants, err := s.List()
	if err != nil || len(grants) != 2 || grants[0].GrantName() != "aws" || grants[1].GrantName() != "deploy" {
		t.Errorf("listed %v, %v", grants, err)
	}
	save(t, s, newGrant(t, AWS{Name: "deploy"}))
	if got, err := load(s, "deploy"); err != nil || got.RoleARN != roleARN || got.Verified != nil {
		t.Errorf("replaced: %+v, %v", got, err)
	}
	if err := s.Remove("deploy"); err != nil {
		t.Fatal(err)
	}
	wantNames(t, s, "aws.json")
}

// wantNames checks for everything that is in a store's folder.
func wantNames(t *testing.T, s Store, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(s.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var got []string
	for _, entry := range entries {
		got = append(got, entry.Name())
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("there are %q, want %q", got, want)
	}
}

func TestStoreModes(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	s := Store{Dir: filepath.Join(state, "grants")}
	wantModes := func() {
		t.Helper()
		for path, want := range map[string]fs.FileMode{state: fs.ModeDir | 0o700, s.Dir: fs.ModeDir | 0o700, s.path("aws"): 0o600} {
			if info, err := os.Stat(path); err != nil || info.Mode() != want {
				t.Errorf("%s: %v, %v, want %v", path, info.Mode(), err, want)
			}
		}
	}
	save(t, s, newGrant(t, AWS{}))
	wantModes()
	for path, mode := range map[string]fs.FileMode{s.Dir: 0o755, s.path("aws"): 0o644} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	save(t, s, newGrant(t, AWS{}))
	wantModes()
}

func TestStoreUnknown(t *testing.T) {
	outside := t.TempDir()
	s := Store{Dir: filepath.Join(outside, "grants")}
	for _, made := range []bool{false, true} {
		if made {
			save(t, s, newGrant(t, AWS{}))
			if err := os.Rename(s.path("aws"), filepath.Join(outside, "aws.json")); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"gone", "", ".", "..", "../aws", "a/b", "A", ".aws", "a\x00"} {
			_, err := s.Load(name)
			for _, err := range []error{err, s.Remove(name)} {
				if !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), fmt.Sprintf("%q", name)) {
					t.Errorf("%q: %v", name, err)
				}
			}
		}
	}
	if _, err := os.Stat(filepath.Join(outside, "aws.json")); err != nil {
		t.Errorf("a file outside the store: %v", err)
	}
}

func TestStoreRefusesBadGrants(t *testing.T) {
	s := Store{Dir: filepath.Join(t.TempDir(), "grants")}
	wantError(t, s.Save(AWS{Name: "../aws", RoleARN: roleARN}), "name of a grant", "")
	wantError(t, s.Save(AWS{Name: "aws", RoleARN: "x"}), "is not an ARN", "")
	if _, err := os.Stat(s.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder was made for them: %v", err)
	}
}

// What was damaged is not used, is told of, and can be taken away or replaced.
func TestStoreDamaged(t *testing.T) {
	good, err := json.Marshal(newGrant(t, AWS{Name: "bad"}))
	if err != nil {
		t.Fatal(err)
	}
	change := func(old, new string) string {
		if !strings.Contains(string(good), old) {
			t.Fatalf("there is no %s in %s", old, good)
		}
		return strings.Replace(string(good), old, new, 1)
	}
	for name, test := range map[string]struct{ content, message string }{
		"empty":         {"", "unexpected end"},
		"cut off":       {string(good[:len(good)/2]), "unexpected end"},
		"two":           {string(good) + string(good), "after top-level value"},
		"null":          {"null", "version 0"},
		"array":         {"[]", "cannot unmarshal array"},
		"unknown field": {change(`"region"`, `"regions":[],"region"`), `unknown field "regions"`},
		"later version": {change(`"version":1`, `"version":2,"new":1`), "version 2, this agent reads version 1"},
		"another kind":  {change(`"kind":"aws"`, `"kind":"gcp"`), `kind "gcp"`},
		"another name":  {change(`"name":"bad"`, `"name":"aws"`), `name in it is "aws"`},
		"role":          {change("AgentRole", ""), "the name is empty"},
		"duration":      {change("900", "899"), "out of range"},
		"wrapped":       {change(":900", ":36028797018964868"), "out of range"},
		"overflow":      {change(":900", ":99999999999999999999"), "cannot unmarshal number"},
		"region":        {change("us-east-1", "cn-north-1"), "partition aws-cn"},
	} {
		t.Run(name, func(t *testing.T) {
			s := Store{Dir: filepath.Join(t.TempDir(), "grants")}
			save(t, s, newGrant(t, AWS{}))
			if err := os.WriteFile(s.path("bad"), []byte(test.content), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := s.Load("bad")
			wantError(t, err, test.message, "agent grant revoke bad")
			if !strings.Contains(err.Error(), s.path("bad")) {
				t.Errorf("%q does not name the file", err)
			}
			grants, err := s.List()
			if len(grants) != 1 || grants[0].GrantName() != "aws" {
				t.Errorf("of the others it lists %v", grants)
			}
			wantError(t, err, test.message, "agent grant revoke bad")
			if err := s.Remove("bad"); err != nil {
				t.Error(err)
			}
			wantNames(t, s, "aws.json")
		})
	}
}

func TestStoreReadsOnlyFiles(t *testing.T) {
	s := Store{Dir: filepath.Join(t.TempDir(), "grants")}
	save(t, s, newGrant(t, AWS{}))
	if err := os.Symlink(s.path("aws"), s.path("link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(s.path("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.path("large"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(s.path("large"), maxFile+1); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"link", "fifo", "large"} {
		_, err := s.Load(name)
		wantError(t, err, "not a file as grants are stored in", "revoke "+name)
	}
}

// What one that was killed left aside is no grant, and in nobody's way.
func TestStoreLeftovers(t *testing.T) {
	s := Store{Dir: filepath.Join(t.TempDir(), "grants")}
	save(t, s, newGrant(t, AWS{}))
	for _, name := range []string{s.aside("aws"), filepath.Join(s.Dir, "README")} {
		if err := os.WriteFile(name, []byte("half of"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if grants, err := s.List(); err != nil || len(grants) != 1 {
		t.Errorf("listed %v, %v", grants, err)
	}
	save(t, s, newGrant(t, AWS{Region: "us-west-2"}))
	wantNames(t, s, "README", "aws.json")
	if got, err := load(s, "aws"); err != nil || got.Region != "us-west-2" {
		t.Errorf("loaded %+v, %v", got, err)
	}
}

// inMountNamespace calls do with file systems of its own.
func inMountNamespace(t *testing.T, do func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
			t.Errorf("unshare the mount namespace: %v", err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Errorf("make mounts private: %v", err)
			return
		}
		do()
	})
	wg.Wait()
}

// A folder that cannot be written is an error, and what was there stays.
func TestStoreUnwritable(t *testing.T) {
	small := newGrant(t, AWS{})
	large := newGrant(t, AWS{SessionPolicy: `{"Sid":"` + strings.Repeat("x", 2000) + `"}`})
	for name, test := range map[string]struct {
		want  error
		spoil func(s Store) error
	}{
		"read-only": {unix.EROFS, func(s Store) error {
			return unix.Mount("", s.Dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
		}},
		"full": {unix.ENOSPC, func(s Store) error {
			file, err := os.Create(filepath.Join(s.Dir, "filler"))
			if err != nil {
				return err
			}
			defer file.Close()
			for err == nil {
				_, err = file.Write(make([]byte, 4096))
			}
			if errors.Is(err, unix.ENOSPC) {
				return nil
			}
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := Store{Dir: t.TempDir()}
			inMountNamespace(t, func() {
				if err := unix.Mount("tmpfs", s.Dir, "tmpfs", 0, "size=64k"); err != nil {
					t.Errorf("mount tmpfs: %v", err)
					return
				}
				if err := s.Save(small); err != nil {
					t.Error(err)
					return
				}
				if err := test.spoil(s); err != nil {
					t.Error(err)
					return
				}
				if err := s.Save(large); !errors.Is(err, test.want) || !strings.Contains(err.Error(), `store grant "aws"`) {
					t.Errorf("error is %v, want %v", err, test.want)
				}
				if got, err := load(s, "aws"); err != nil || !reflect.DeepEqual(got, small) {
					t.Errorf("after it: %+v, %v", got, err)
				}
				if _, err := os.Stat(s.aside("aws")); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("something is left aside: %v", err)
				}
				if name == "read-only" {
					if err := s.Remove("aws"); !errors.Is(err, unix.EROFS) {
						t.Errorf("remove: %v", err)
					}
				}
			})
		})
	}
}

// The folder's place may be taken by what no privilege gets past.
func TestStoreFolderIsNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "grants")
	if err := os.WriteFile(path, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := Store{Dir: path}
	if err := s.Save(newGrant(t, AWS{})); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("save: %v", err)
	}
	if _, err := s.List(); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("list: %v", err)
	}
	if content, err := os.ReadFile(path); err != nil || string(content) != "kept" {
		t.Errorf("it is %q, %v", content, err)
	}
}

// Whoever reads while others write finds one grant or the other, whole.
func TestStoreParallel(t *testing.T) {
	s := Store{Dir: filepath.Join(t.TempDir(), "grants")}
	save(t, s, newGrant(t, AWS{}))
	var wg sync.WaitGroup
	for _, region := range []string{"us-east-1", "us-west-2", "eu-west-1", "eu-north-1"} {
		a := newGrant(t, AWS{Region: region, SessionPolicy: `{"Sid":"` + strings.Repeat(region, 100) + `"}`})
		wg.Go(func() {
			for range 25 {
				if err := s.Save(a); err != nil {
					t.Error(err)
				}
				got, err := load(s, "aws")
				if err != nil || !strings.Contains(got.SessionPolicy, strings.Repeat(got.Region, 100)) {
					t.Errorf("loaded %+v, %v", got, err)
				}
			}
		})
	}
	wg.Wait()
	wantNames(t, s, "aws.json")
}
