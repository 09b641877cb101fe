package awsstub

import (
	"bytes"
	"cmp"
	"crypto/md5"
	"crypto/rand"
	"encoding/hex"
	"encoding/xml"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

type s3Error struct {
	XMLName    xml.Name `xml:"Error"`
	Code       string
	Message    string
	BucketName string `xml:",omitempty"`
	Key        string `xml:",omitempty"`
	Resource   string
	RequestID  string `xml:"RequestId"`
	HostID     string `xml:"HostId"`
}

type listBucketsResult struct {
	XMLName xml.Name      `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListAllMyBucketsResult"`
	OwnerID string        `xml:"Owner>ID"`
	Buckets []bucketEntry `xml:"Buckets>Bucket"`
}

type bucketEntry struct {
	Name         string
	CreationDate string
}

type listObjectsResult struct {
	XMLName               xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListBucketResult"`
	Name                  string
	Prefix                string
	Delimiter             string `xml:",omitempty"`
	KeyCount              int
	MaxKeys               int
	EncodingType          string `xml:",omitempty"`
	IsTruncated           bool
	ContinuationToken     string `xml:",omitempty"`
	NextContinuationToken string `xml:",omitempty"`
	Contents              []objectEntry
	CommonPrefixes        []commonPrefix
}

type commonPrefix struct{ Prefix string }

type objectEntry struct {
	Key          string
	LastModified string
	ETag         string
	Size         int
	StorageClass string
}

type locationConstraint struct {
	XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ LocationConstraint"` // empty: us-east-1
}

var (
	created  = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	noBucket = apiError{http.StatusNotFound, "NoSuchBucket", "The specified bucket does not exist"}
	noKey    = apiError{http.StatusNotFound, "NoSuchKey", "The specified key does not exist."}
	noMethod = apiError{http.StatusMethodNotAllowed, "MethodNotAllowed", "The specified method is not allowed against this resource."}
	noRange  = apiError{http.StatusRequestedRangeNotSatisfiable, "InvalidRange", "The requested range is not satisfiable"}
)

const s3Time = "2006-01-02T15:04:05.000Z"

// s3 answers for path, BUCKET/KEY.
func (s *Stub) s3(w http.ResponseWriter, r *http.Request, path string) {
	id := rand.Text()[:16]
	w.Header().Set("X-Amz-Request-Id", id)
	w.Header().Set("X-Amz-Id-2", id)
	bucket, key, _ := strings.Cut(path, "/")
	_, body, refusal := s.authenticate(r, "s3")
	switch {
	case refusal != nil:
		refusal = s3Refusal(*refusal)
	case bucket == "":
		refusal = s.serveAccount(w, r)
	case key == "":
		refusal = s.serveBucket(w, r, bucket)
	default:
		refusal = s.serveObject(w, r, bucket, key, body)
	}
	if refusal == nil {
		return
	}
	if r.Method == http.MethodHead { // has no body to say why
		w.WriteHeader(refusal.status)
		return
	}
	writeXML(w, refusal.status, s3Error{
		Code: refusal.code, Message: refusal.message, BucketName: bucket, Key: key, Resource: r.URL.Path, RequestID: id, HostID: id,
	})
}

// s3Refusal says in S3's words what STS would say of a signature.
func s3Refusal(refusal apiError) *apiError {
	switch refusal.code {
	case "InvalidClientTokenId":
		refusal.code, refusal.message = "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."
	case "ExpiredToken":
		refusal.status, refusal.message = http.StatusBadRequest, "The provided token has expired."
	case "MissingAuthenticationToken":
		refusal.code, refusal.message = "AccessDenied", "Access Denied"
	case "RequestTimeTooSkewed":
		refusal.message = "The difference between the request time and the current time is too large."
	}
	return &refusal
}

// serveAccount answers where no bucket is named.
func (s *Stub) serveAccount(w http.ResponseWriter, r *http.Request) *apiError {
	if r.Method != http.MethodGet {
		return &noMethod
	}
	result := listBucketsResult{OwnerID: "stand-in"}
	s.mu.Lock()
	for _, name := range slices.Sorted(maps.Keys(s.config.Buckets)) {
		result.Buckets = append(result.Buckets, bucketEntry{name, created.Format(s3Time)})
	}
	s.mu.Unlock()
	writeXML(w, http.StatusOK, result)
	return nil
}

// serveBucket answers for a bucket as a whole.
func (s *Stub) serveBucket(w http.ResponseWriter, r *http.Request, bucket string) *apiError {
	s.mu.Lock()
	objects, ok := s.config.Buckets[bucket]
	objects = maps.Clone(objects)
	s.mu.Unlock()
	query := r.URL.Query()
	switch {
	case !ok:
		return &noBucket
	case r.Method == http.MethodHead:
		w.Header().Set("X-Amz-Bucket-Region", "us-east-1")
	case r.Method != http.MethodGet:
		return &noMethod
	case query.Has("location"):
		writeXML(w, http.StatusOK, locationConstraint{})
	default:
		result, refusal := list(bucket, objects, query)
		if refusal != nil {
			return refusal
		}
		writeXML(w, http.StatusOK, result)
	}
	return nil
}

// serveObject answers for an object.
func (s *Stub) serveObject(w http.ResponseWriter, r *http.Request, bucket, key string, body []byte) *apiError {
	s.mu.Lock()
	objects, found := s.config.Buckets[bucket]
	content, ok := objects[key]
	s.mu.Unlock()
	switch {
	case !found:
		return &noBucket
	case r.Header.Get("X-Amz-Copy-Source") != "" || r.URL.Query().Has("uploadId") || r.URL.Query().Has("uploads"):
		return &apiError{http.StatusNotImplemented, "NotImplemented", "The stand-in neither copies nor takes uploads in parts."}
	case r.Method == http.MethodPut:
		decoded, err := decodeBody(r.Header, body)
		if err != nil {
			return &apiError{http.StatusBadRequest, "IncompleteBody", err.Error()}
		}
		s.mu.Lock()
		objects[key] = decoded
		s.mu.Unlock()
		w.Header().Set("ETag", etag(decoded))
		return nil
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		return &noMethod
	case !ok:
		return &noKey
	}
	first, _, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("Range"), "bytes="), "-")
	if start, err := strconv.Atoi(first); err == nil && start >= len(content) {
		w.Header().Set("Content-Range", "bytes */"+strconv.Itoa(len(content)))
		return &noRange
	}
	w.Header().Set("ETag", etag(content))
	w.Header().Set("Content-Type", "binary/octet-stream")
	http.ServeContent(w, r, "", created, bytes.NewReader(content))
	return nil
}

// list answers ListObjectsV2, page by page. A page's continuation token is the
// last key or common prefix of the one before it, in hexadecimal.
func list(bucket string, objects map[string][]byte, query url.Values) (*listObjectsResult, *apiError) {
	prefix, delimiter := query.Get("prefix"), query.Get("delimiter")
	most, err := strconv.Atoi(cmp.Or(query.Get("max-keys"), "1000"))
	after, tokenErr := hex.DecodeString(query.Get("continuation-token"))
	if err != nil || most < 0 || tokenErr != nil {
		return nil, &apiError{http.StatusBadRequest, "InvalidArgument", "max-keys or continuation-token is not valid"}
	}
	last := cmp.Or(string(after), query.Get("start-after"))
	encode := func(key string) string { return key }
	if query.Get("encoding-type") == "url" {
		encode = func(key string) string {
			return strings.ReplaceAll(strings.ReplaceAll(url.QueryEscape(key), "%2F", "/"), "+", "%20")
		}
	}
	page := &listObjectsResult{
		Name: bucket, Prefix: encode(prefix), Delimiter: encode(delimiter), MaxKeys: min(most, 1000), EncodingType: query.Get("encoding-type"),
		ContinuationToken: query.Get("continuation-token"),
	}
	for _, key := range slices.Sorted(maps.Keys(objects)) {
		rest, ok := strings.CutPrefix(key, prefix)
		if !ok {
			continue
		}
		entry := key
		folder, _, below := strings.Cut(rest, delimiter)
		if below = below && delimiter != ""; below {
			entry = prefix + folder + delimiter
		}
		if last != "" && entry <= last { // on an earlier page, or the same common prefix
			continue
		}
		if page.KeyCount == page.MaxKeys {
			if page.IsTruncated = most > 0; page.IsTruncated {
				page.NextContinuationToken = hex.EncodeToString([]byte(last))
			}
			break
		}
		page.KeyCount++
		last = entry
		if below {
			page.CommonPrefixes = append(page.CommonPrefixes, commonPrefix{encode(entry)})
			continue
		}
		page.Contents = append(page.Contents, objectEntry{encode(key), created.Format(s3Time), etag(objects[key]), len(objects[key]), "STANDARD"})
	}
	return page, nil
}

func etag(content []byte) string {
	sum := md5.Sum(content)
	return `"` + hex.EncodeToString(sum[:]) + `"`
}
