package runtime

import (
	"bytes"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	bundleName    = "ca-bundle.pem"
	authorityName = "ca.pem"
	javaStoreName = "cacerts"

	// BundlePath is the trusted CAs' in every run that has a bundle.
	BundlePath = Folder + "/" + bundleName
)

// bundlePaths are where systems keep the bundle of the CAs that they trust.
var bundlePaths = []string{
	"/etc/ssl/certs/ca-certificates.crt",                // Debian, Ubuntu, Alpine, Gentoo, Arch
	"/etc/pki/tls/certs/ca-bundle.crt",                  // Fedora, RHEL
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // CentOS, RHEL 7 and later
	"/etc/ssl/ca-bundle.pem",                            // openSUSE
	"/var/lib/ca-certificates/ca-bundle.pem",            // openSUSE, what the former links to
	"/etc/pki/tls/cacert.pem",                           // OpenELEC
	"/etc/pki/tls/cert.pem",                             // Fedora's OpenSSL
	"/etc/ssl/cert.pem",                                 // Alpine
	"/usr/lib/ssl/cert.pem",                             // Debian's OpenSSL
	"/usr/local/share/certs/ca-root-nss.crt",            // FreeBSD's layout, as some images have it
	"/usr/local/ssl/cert.pem",                           // OpenSSL built from source
}

// hashedFolders hold each CA in a file that is named by a hash of the CA's name.
var hashedFolders = []string{
	"/etc/ssl/certs",     // Debian, Alpine, Arch
	"/etc/pki/tls/certs", // Fedora
	"/etc/pki/ca-trust/extracted/pem/directory-hash", // Fedora 40 and later
	"/var/lib/ca-certificates/openssl",               // openSUSE
}

// anchorFolders hold what a system's own tools add to its stores whenever they
// make these anew, as in an installation of packages.
var anchorFolders = []string{
	"/usr/local/share/ca-certificates",          // Debian, Ubuntu, Alpine
	"/etc/pki/ca-trust/source/anchors",          // Fedora
	"/etc/pki/trust/anchors",                    // openSUSE
	"/etc/ca-certificates/trust-source/anchors", // Arch
}

// javaStores are where systems keep the store that their Javas have links to;
// javaFolders, where Javas of all sorts are installed.
var (
	javaStores = []string{
		"/etc/ssl/certs/java/cacerts",              // Debian, Alpine
		"/etc/pki/ca-trust/extracted/java/cacerts", // Fedora
		"/var/lib/ca-certificates/java-cacerts",    // openSUSE
	}
	javaFolders = []string{"/usr/lib/jvm", "/opt/java", "/opt", "/usr/java", "/usr/local"}
)

// SystemBundle reads the bundle of the CAs that this host trusts; nil where there
// is none. There is room behind it for one more.
func SystemBundle() ([]byte, error) {
	for _, path := range bundlePaths {
		content, err := readWithRoom(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the host's trusted CAs: %w", err)
		}
		if !bytes.HasSuffix(content, []byte("\n")) {
			content = append(content, '\n') // more is to follow the last line
		}
		return content, nil
	}
	return nil, nil
}

// readWithRoom reads a file into more memory than it needs, so that it need not be
// moved when something is appended.
func readWithRoom(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return nil, err
	}
	const room = 8 << 10
	buf := bytes.NewBuffer(make([]byte, 0, int(st.Size())+room))
	_, err = buf.ReadFrom(file)
	return buf.Bytes(), err
}

// trust makes every trust store of the tree hold the bundle, before anything of
// the user's is mounted in it. The stores are written, in the run's copy of the
// tree: on a mount, no package that brings a store could be installed.
func (v *view) trust(cfg *Config) error {
	if cfg.Bundle == nil {
		return nil
	}
	bundle := func() io.Reader { return bytes.NewReader(cfg.Bundle) }
	made := sync.OnceValue(func() []byte { return javaStore(cfg.Bundle) })
	store := func() io.Reader { return bytes.NewReader(made()) }
	authority := func() io.Reader { return bytes.NewReader(cfg.Authority) }
	for name, content := range map[string]func() io.Reader{bundleName: bundle, authorityName: authority, javaStoreName: store} {
		if err := v.writeLater(v.staged(name), content, 0o444); err != nil {
			return err
		}
	}
	root, err := unix.Open(v.root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: v.root, Err: err}
	}
	defer unix.Close(root)
	if v.replaceStores(root, bundlePaths, bundleName, bundle) == 0 {
		// For who looks there only, as GnuTLS does. A tree that nothing can be
		// written to has the variables.
		if file, err := openFile(root, bundlePaths[0]); err == nil {
			unix.Close(file)
			v.replaceStores(root, bundlePaths[:1], bundleName, bundle)
		}
	}
	paths := slices.Clone(javaStores)
	for _, home := range javaHomes(root, cfg.Env) {
		for _, security := range []string{"lib/security", "jre/lib/security"} {
			paths = append(paths, filepath.Join(home, security, "jssecacerts"), filepath.Join(home, security, "cacerts"))
		}
	}
	v.javaless = v.replaceStores(root, paths, javaStoreName, store) == 0
	return addAuthority(root, cfg.Authority)
}

func (v *view) staged(name string) string {
	return filepath.Join(v.stage, Folder, name)
}

// replaceStores has what /agentops has under a name written to those of the paths
// that are there, each file once, and returns how many they are. What cannot be
// written is to be mounted on.
func (v *view) replaceStores(root int, paths []string, name string, content func() io.Reader) int {
	type inode struct{ device, number uint64 }
	var seen []inode
	for _, path := range paths {
		fd, err := openIn(root, path, 0)
		if err != nil {
			continue
		}
		var st unix.Stat_t
		err = unix.Fstat(fd, &st)
		file := inode{st.Dev, st.Ino}
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && !slices.Contains(seen, file) {
			seen = append(seen, file)
			if file, err := os.OpenFile(descriptor(fd), os.O_WRONLY|os.O_TRUNC, 0); err == nil {
				v.unfilled = append(v.unfilled, unfilled{file, content})
			} else {
				v.stores = append(v.stores, Mount{Source: v.staged(name), Destination: path, ReadOnly: true})
			}
		}
		unix.Close(fd)
	}
	return len(seen)
}

// descriptor is the path of what a descriptor of this thread's refers to.
func descriptor(fd int) string { return "/proc/thread-self/fd/" + strconv.Itoa(fd) }

// javaHomes are the folders in the tree where a Java is or may be.
func javaHomes(root int, env []string) []string {
	set := variables(env)
	homes := []string{set["JAVA_HOME"]}
	top, err := os.Readlink(descriptor(root))
	if err != nil {
		return nil
	}
	for _, dir := range filepath.SplitList(set["PATH"]) {
		fd, err := openIn(root, filepath.Join(dir, "java"), 0)
		if err != nil {
			continue
		}
		if path, err := os.Readlink(descriptor(fd)); err == nil {
			homes = append(homes, filepath.Dir(filepath.Dir(strings.TrimPrefix(path, top))))
		}
		unix.Close(fd)
	}
	for _, folder := range javaFolders {
		fd, err := openIn(root, folder, unix.O_DIRECTORY)
		if err != nil {
			continue
		}
		if dir, err := os.Open(descriptor(fd)); err == nil {
			const most = 256 // of a tree that is anyone's
			names, _ := dir.Readdirnames(most)
			for _, name := range names {
				homes = append(homes, filepath.Join(folder, name))
			}
			dir.Close()
		}
		unix.Close(fd)
	}
	return homes
}

// addAuthority adds the run's CA to the stores that are folders, for programs
// that read nothing else, and to what systems make their stores of.
func addAuthority(root int, authority []byte) error {
	block, _ := pem.Decode(authority)
	if block == nil {
		return nil
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fmt.Errorf("read the run's CA: %w", err)
	}
	hash, err := subjectHash(certificate.RawSubject)
	if err != nil {
		return fmt.Errorf("hash the name of the run's CA: %w", err)
	}
	for _, folder := range hashedFolders {
		fd, err := openIn(root, folder, unix.O_DIRECTORY)
		if err != nil {
			continue
		}
		err = addHashed(fd, hash, authority)
		unix.Close(fd)
		if err != nil && !unwritable(err) {
			return fmt.Errorf("add the run's CA to %s: %w", folder, err)
		}
	}
	for _, folder := range anchorFolders {
		parent, err := openIn(root, filepath.Dir(folder), unix.O_DIRECTORY)
		if err != nil {
			continue // another system's
		}
		unix.Close(parent)
		fd, err := openFolder(root, folder)
		if err == nil {
			err = addFile(fd, "agentops.crt", authority)
			unix.Close(fd)
		}
		if err != nil && !unwritable(err) {
			return fmt.Errorf("add the run's CA to %s: %w", folder, err)
		}
	}
	return nil
}

// addHashed adds a CA to a folder under a hash that others may have as well.
func addHashed(folder int, hash string, authority []byte) error {
	const name, most = "agentops.pem", 16
	if err := addFile(folder, name, authority); err != nil {
		return err
	}
	for n := range most {
		err := unix.Symlinkat(name, folder, fmt.Sprintf("%s.%d", hash, n))
		if !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	return unix.EEXIST
}

// addFile makes a file in a folder anew, and follows no link to it.
func addFile(folder int, name string, content []byte) error {
	if err := unix.Unlinkat(folder, name, 0); err != nil && err != unix.ENOENT {
		return err
	}
	fd, err := unix.Openat(folder, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), name)
	_, err = file.Write(content)
	return errors.Join(err, file.Chmod(0o644), file.Close())
}

// unwritable says whether a place in the tree is one that cannot be changed, or
// is no folder: then programs have the variables.
func unwritable(err error) bool {
	return slices.ContainsFunc([]error{unix.EROFS, unix.EPERM, unix.ENOTDIR, unix.EISDIR, unix.EEXIST, unix.ELOOP},
		func(known error) bool { return errors.Is(err, known) })
}

// subjectHash is the name that OpenSSL looks a CA's file up by: the first four
// bytes of the SHA-1 of the subject's canonical form (X509_NAME_hash).
func subjectHash(subject []byte) (string, error) {
	var name pkix.RDNSequence
	if _, err := asn1.Unmarshal(subject, &name); err != nil {
		return "", err
	}
	type attribute struct {
		Type  asn1.ObjectIdentifier
		Value string `asn1:"utf8"`
	}
	hash := sha1.New()
	for _, set := range name {
		var canonical []attribute
		for _, a := range set {
			text, _ := a.Value.(string)
			canonical = append(canonical, attribute{a.Type, strings.Join(strings.Fields(strings.ToLower(text)), " ")})
		}
		der, err := asn1.MarshalWithParams(canonical, "set")
		if err != nil {
			return "", err
		}
		hash.Write(der)
	}
	return fmt.Sprintf("%08x", binary.LittleEndian.Uint32(hash.Sum(nil))), nil
}

// javaStore is a bundle as a Java KeyStore (JKS) with the password of all Javas'
// own. Every Java reads that form, whatever type of store it is told to expect,
// and it takes a tenth of the time that a PKCS#12 store takes to make.
func javaStore(bundle []byte) []byte {
	const trusted, version, header = 2, 2, 12
	store := make([]byte, header, len(bundle)+64)
	var n uint32
	for {
		_, rest, found := bytes.Cut(bundle, []byte("-----BEGIN CERTIFICATE-----"))
		if !found {
			break
		}
		var body []byte
		body, bundle, _ = bytes.Cut(rest, []byte("-----END CERTIFICATE-----"))
		before := len(store)
		store = binary.BigEndian.AppendUint32(store, trusted)
		store = appendJavaText(store, "agentops-"+strconv.Itoa(int(n)))
		store = binary.BigEndian.AppendUint64(store, 0) // when it was added
		store = appendJavaText(store, "X.509")
		store = binary.BigEndian.AppendUint32(store, 0)
		start := len(store)
		var err error
		if store, err = base64.StdEncoding.AppendDecode(store, body); err != nil {
			store = store[:before]
			continue
		}
		binary.BigEndian.PutUint32(store[start-4:], uint32(len(store)-start))
		n++
	}
	copy(store, []byte{0xfe, 0xed, 0xfe, 0xed})
	binary.BigEndian.PutUint32(store[4:], version)
	binary.BigEndian.PutUint32(store[8:], n)
	hash := sha1.New()
	for _, c := range []byte("changeit") {
		hash.Write([]byte{0, c})
	}
	hash.Write([]byte("Mighty Aphrodite")) // by the format
	hash.Write(store)
	return hash.Sum(store)
}

func appendJavaText(b []byte, text string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(text))), text...)
}

// withJavaStore adds to an environment what makes a JVM trust the bundle that
// brings a store of its own. Every JVM says on stderr that it has found it, so it
// is for views alone in which no Java is known. What the user gives comes after
// it and wins.
func withJavaStore(env []string) []string {
	const name = "JAVA_TOOL_OPTIONS="
	option := name + "-Djavax.net.ssl.trustStore=" + Folder + "/" + javaStoreName
	for i, entry := range env {
		if given, found := strings.CutPrefix(entry, name); found {
			env = slices.Clone(env)
			env[i] = strings.TrimSpace(option + " " + given)
			return env
		}
	}
	return append(slices.Clip(env), option)
}
