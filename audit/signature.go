package audit

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// What is signed begins with what it is, so that none can be shown as another.
const (
	journalContext = "agentops journal v1\n"
	sealContext    = "agentops seal v1\n"
	ledgerContext  = "agentops ledger v1\n"
)

// Keys are the public keys of which one must have signed, by identifier. Without
// any, nothing is validly signed; with nil, signatures are not checked.
type Keys map[string]ed25519.PublicKey

// Add puts a key among them.
func (k Keys) Add(public ed25519.PublicKey) { k[KeyID(public)] = public }

const (
	keyField       = `,"key":"`
	signatureField = `","signature":"`
	signatureEnd   = `"}`
	idLength       = 16
)

var errUnsigned = errors.New("is not signed")

// signLine adds the key's identifier and, last, the signature to a line: a JSON
// object with at least one field and no newline. Signed are the context and the
// line's exact bytes up to the signature field.
func (k *Key) signLine(context string, line []byte) []byte {
	signed := slices.Concat([]byte(context), line[:len(line)-1], []byte(keyField+k.id+`"`))
	signature := base64.StdEncoding.EncodeToString(k.Sign(signed))
	return slices.Concat(signed[len(context):], []byte(signatureField[1:]+signature+signatureEnd))
}

// check returns the identifier of the key that has signed a line; empty when
// keys is nil. Its error says of the line what is wrong: "... is not signed".
func (k Keys) check(context string, line []byte) (string, error) {
	at := bytes.LastIndex(line, []byte(signatureField))
	start := at - idLength
	if start < 0 || !bytes.HasSuffix(line[:start], []byte(keyField)) {
		return "", errUnsigned
	}
	id := string(line[start:at])
	text, ok := bytes.CutSuffix(line[at+len(signatureField):], []byte(signatureEnd))
	signature, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if !ok || err != nil || len(signature) != ed25519.SignatureSize {
		return "", errUnsigned
	}
	if k == nil {
		return "", nil
	}
	public, ok := k[id]
	switch {
	case len(k) == 0:
		return "", fmt.Errorf("is signed by key %q, and there is no key to check that with", id)
	case !ok:
		return "", fmt.Errorf("is signed by key %q, not by %s", id, strings.Join(slices.Sorted(maps.Keys(k)), " or "))
	case !ed25519.Verify(public, slices.Concat([]byte(context), line[:at+1]), signature):
		return "", fmt.Errorf("has a signature that key %s did not make: it was changed", id)
	}
	return id, nil
}
