package main

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"

	"golang.org/x/net/http2"
)

// client has one connection, and no other when that ends.
type client struct {
	url string
	ask func(*http.Request) (*http.Response, error)
}

// open connects to a host. ALPN offers the one protocol, h2 or http/1.1.
func (c *client) open(host, protocol string) error {
	c.url = "https://" + host
	conn, err := tls.Dial("tcp", host+":443", &tls.Config{NextProtos: []string{protocol}})
	if err != nil {
		return err
	}
	if spoken := conn.ConnectionState().NegotiatedProtocol; spoken != protocol {
		return fmt.Errorf("the server speaks %q", spoken)
	}
	if protocol == "h2" {
		of, err := new(http2.Transport).NewClientConn(conn)
		if err != nil {
			return err
		}
		c.ask = of.RoundTrip
		return nil
	}
	reader := bufio.NewReader(conn)
	c.ask = func(request *http.Request) (*http.Response, error) {
		if err := request.Write(conn); err != nil {
			return nil, err
		}
		return http.ReadResponse(reader, request)
	}
	return nil
}

// get asks for a path and reads the answer.
func (c *client) get(path string) error {
	request, err := http.NewRequest(http.MethodGet, c.url+path, nil)
	if err != nil {
		return err
	}
	response, err := c.ask(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %v", response.Status, err)
	}
	return nil
}
