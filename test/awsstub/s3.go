package awsstub

import (
	"bufio"
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"encoding/xml"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

type s3Error struct {
	XMLName xml.Name `xml:"Error"`
	Code    string
	Message string
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
	XMLName        xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListBucketResult"`
	Name           string
	Prefix         string
	KeyCount       int
	MaxKeys        int
	IsTruncated    bool
	Contents       []objectEntry
	CommonPrefixes []commonPrefix
}

type commonPrefix struct{ Prefix string }

type objectEntry struct {
	Key          string
	LastModified string
	ETag         string
	Size         int
	StorageClass string
}

var created = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// s3 answers for path, BUCKET/KEY.
func (s *Stub) s3(w http.ResponseWriter, r *http.Request, path string) {
	_, body, refusal := s.authenticate(r, "s3")
	if refusal == nil {
		bucket, key, _ := strings.Cut(path, "/")
		refusal = s.serveS3(w, r, bucket, key, body)
	}
	if refusal != nil {
		writeXML(w, refusal.status, s3Error{Code: refusal.code, Message: refusal.message})
	}
}

func (s *Stub) serveS3(w http.ResponseWriter, r *http.Request, bucket, key string, body []byte) *apiError {
	s.mu.Lock()
	defer s.mu.Unlock()
	objects, ok := s.config.Buckets[bucket]
	switch {
	case bucket == "" && r.Method == http.MethodGet:
		result := listBucketsResult{OwnerID: "stand-in"}
		for _, name := range slices.Sorted(maps.Keys(s.config.Buckets)) {
			result.Buckets = append(result.Buckets, bucketEntry{name, created.Format(time.RFC3339)})
		}
		writeXML(w, http.StatusOK, result)
	case !ok:
		return &apiError{http.StatusNotFound, "NoSuchBucket", "The specified bucket does not exist"}
	case key == "" && r.URL.Query().Has("location"):
		writeXML(w, http.StatusOK, struct {
			XMLName xml.Name `xml:"LocationConstraint"`
		}{})
	case key == "" && r.Method == http.MethodGet:
		writeXML(w, http.StatusOK, list(bucket, objects, r.URL.Query().Get("prefix"), r.URL.Query().Get("delimiter")))
	case key == "" && r.Method == http.MethodHead:
	case key == "":
		return &apiError{http.StatusMethodNotAllowed, "MethodNotAllowed", "not by this method"}
	case r.Method == http.MethodPut:
		content, err := decodeBody(r, body)
		if err != nil {
			return &apiError{http.StatusBadRequest, "IncompleteBody", err.Error()}
		}
		objects[key] = content
		w.Header().Set("ETag", etag(content))
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		content, ok := objects[key]
		if !ok {
			return &apiError{http.StatusNotFound, "NoSuchKey", "The specified key does not exist."}
		}
		w.Header().Set("ETag", etag(content))
		w.Header().Set("Content-Type", "binary/octet-stream")
		http.ServeContent(w, r, "", created, bytes.NewReader(content))
	default:
		return &apiError{http.StatusMethodNotAllowed, "MethodNotAllowed", "not by this method"}
	}
	return nil
}

func list(bucket string, objects map[string][]byte, prefix, delimiter string) listObjectsResult {
	result := listObjectsResult{Name: bucket, Prefix: prefix, MaxKeys: 1000}
	for _, key := range slices.Sorted(maps.Keys(objects)) {
		rest, ok := strings.CutPrefix(key, prefix)
		if !ok {
			continue
		}
		if folder, _, below := strings.Cut(rest, delimiter); delimiter != "" && below {
			common := commonPrefix{prefix + folder + delimiter}
			if !slices.Contains(result.CommonPrefixes, common) {
				result.CommonPrefixes = append(result.CommonPrefixes, common)
			}
			continue
		}
		result.Contents = append(result.Contents, objectEntry{key, created.Format(time.RFC3339), etag(objects[key]), len(objects[key]), "STANDARD"})
	}
	result.KeyCount = len(result.Contents) + len(result.CommonPrefixes)
	return result
}

func etag(content []byte) string {
	sum := md5.Sum(content)
	return `"` + hex.EncodeToString(sum[:]) + `"`
}

// decodeBody takes the aws-chunked coding off an upload: chunks with their length
// in hexadecimal, and their signature behind a semicolon, then trailers.
func decodeBody(r *http.Request, body []byte) ([]byte, error) {
	if !strings.HasPrefix(r.Header.Get("X-Amz-Content-Sha256"), "STREAMING-") {
		return body, nil
	}
	var content []byte
	reader := bufio.NewReader(bytes.NewReader(body))
	for {
		line, err := reader.ReadString('\n')
		if err != nil {
			return nil, err
		}
		length, _, _ := strings.Cut(strings.TrimSpace(line), ";")
		n, err := strconv.ParseInt(length, 16, 32)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return content, nil
		}
		chunk := make([]byte, n+2) // and its line's end
		if _, err := io.ReadFull(reader, chunk); err != nil {
			return nil, err
		}
		content = append(content, chunk[:n]...)
	}
}
