package awsstub

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// decodeBody takes the aws-chunked coding off an upload that announces it: chunks
// with their length in hexadecimal, and perhaps their signature behind a semicolon,
// then trailers. Neither chunks' signatures nor trailers' checksums are checked.
func decodeBody(header http.Header, body []byte) ([]byte, error) {
	if !strings.HasPrefix(header.Get("X-Amz-Content-Sha256"), "STREAMING-") {
		return body, nil
	}
	content := []byte{}
	reader := bufio.NewReader(bytes.NewReader(body))
	for {
		line, err := reader.ReadString('\n')
		if err != nil {
			return nil, fmt.Errorf("read a chunk's length: %w", err)
		}
		length, _, _ := strings.Cut(strings.TrimSpace(line), ";")
		n, err := strconv.ParseInt(length, 16, 32)
		if err != nil || n < 0 || n > int64(len(body)) {
			return nil, fmt.Errorf("a chunk's length is %q", length)
		}
		if n == 0 {
			break // what follows are trailers
		}
		chunk := make([]byte, n+2) // and its line's end
		if _, err := io.ReadFull(reader, chunk); err != nil {
			return nil, fmt.Errorf("read a chunk of %d bytes: %w", n, err)
		}
		if string(chunk[n:]) != "\r\n" {
			return nil, fmt.Errorf("a chunk of %d bytes is longer", n)
		}
		content = append(content, chunk[:n]...)
	}
	if told := header.Get("X-Amz-Decoded-Content-Length"); told != strconv.Itoa(len(content)) {
		return nil, fmt.Errorf("%d bytes came, not %q", len(content), told)
	}
	return content, nil
}
