package main

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// client is this program in a run, or on the host for what is compared with it. It
// prints its values on stdout.
func client(args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("client ROLE WHERE COUNT, not %q", args)
	}
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	roles := map[string]func(where string, n int) error{
		"stream": receive, "connect": connect, "latency": requestInTurn, "hold": hold, "credential": credentials,
	}
	role, ok := roles[args[0]]
	if !ok {
		return fmt.Errorf("no client %q", args[0])
	}
	return role(args[1], n)
}

// receive prints how fast n bytes come, in MB/s.
func receive(address string, n int) error {
	began := time.Now()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte{0}); err != nil {
		return err
	}
	block, got := make([]byte, 256<<10), 0
	for {
		m, err := conn.Read(block)
		got += m
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if got != n {
		return fmt.Errorf("%d bytes of %d came", got, n)
	}
	fmt.Println(float64(got) / 1e6 / time.Since(began).Seconds())
	return nil
}

// connect prints how many connections a second there are that carry a byte to and
// fro, for a number of seconds, sixteen at a time.
func connect(address string, seconds int) error {
	// The name is looked up once.
	to, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return err
	}
	var made atomic.Int64
	errs := make([]error, 16)
	began := time.Now()
	end := began.Add(time.Duration(seconds) * time.Second)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			for time.Now().Before(end) && errs[i] == nil {
				errs[i] = echo(to)
				made.Add(1)
			}
		})
	}
	wg.Wait()
	fmt.Println(float64(made.Load()) / time.Since(began).Seconds())
	return errors.Join(errs...)
}

func echo(to *net.TCPAddr) error {
	conn, err := net.DialTCP("tcp", nil, to)
	if err != nil {
		return err
	}
	_, err = conn.Write([]byte{0})
	var got []byte
	if err == nil {
		got, err = io.ReadAll(conn)
	}
	if err == nil && len(got) != 1 {
		err = fmt.Errorf("%d bytes came back", len(got))
	}
	return errors.Join(err, conn.Close())
}

// warm is a connection that has been used for requests of 1 KiB.
type warm struct {
	conn   *tls.Conn
	reader *bufio.Reader
}

func dialWarm(address string) (*warm, error) {
	// Whose certificate it is makes no difference to what follows.
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, ServerName: originName, NextProtos: []string{"http/1.1"}})
	if err != nil {
		return nil, err
	}
	w := &warm{conn, bufio.NewReader(conn)}
	return w, w.request()
}

func (w *warm) request() error {
	if _, err := io.WriteString(w.conn, "GET /1k HTTP/1.1\r\nHost: "+originName+"\r\n\r\n"); err != nil {
		return err
	}
	answer, err := http.ReadResponse(w.reader, nil)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	n, err := io.Copy(io.Discard, answer.Body)
	if err == nil && (answer.StatusCode != http.StatusOK || n != 1024) {
		err = fmt.Errorf("the answer has status %d and %d bytes", answer.StatusCode, n)
	}
	return err
}

// requestInTurn prints the median and the 99th percentile of n requests, in
// microseconds.
func requestInTurn(address string, n int) error {
	w, err := dialWarm(address)
	if err != nil {
		return err
	}
	defer w.conn.Close()
	spent := make([]float64, 0, n)
	for i := range n + 500 { // the first are not warm
		began := time.Now()
		if err := w.request(); err != nil {
			return err
		}
		if i >= 500 {
			spent = append(spent, time.Since(began).Seconds()*1e6)
		}
	}
	slices.Sort(spent)
	fmt.Println(quantile(spent, 0.5), quantile(spent, 0.99))
	return nil
}

// hold opens n connections, uses each once, says so, and keeps them until its stdin
// ends.
func hold(address string, n int) error {
	conns := make([]*warm, n)
	errs := make([]error, n)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 32)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			conns[i], errs[i] = dialWarm(address)
			<-slots
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	for _, w := range conns {
		w.conn.Close()
	}
	return err
}

// credentials prints two medians of n, in milliseconds: of the helper, from its start
// to its exit, and of a request to the credential server on a new connection, which
// is all that the helper waits for.
func credentials(grant string, n int) error {
	token, err := os.ReadFile(os.Getenv("AGENTOPS_CREDENTIAL_TOKEN_FILE"))
	if err != nil {
		return err
	}
	url := os.Getenv("AGENTOPS_CREDENTIAL_URL")
	request := "GET /v1/process/" + grant + " HTTP/1.1\r\nHost: " + strings.TrimPrefix(url, "http://") +
		"\r\nAuthorization: " + strings.TrimSpace(string(token)) + "\r\nConnection: close\r\n\r\n"
	var helper, server []float64
	for range n {
		began := time.Now()
		out, err := exec.Command("/agentops/helper", "credential", grant).Output()
		helper = append(helper, milliseconds(time.Since(began)))
		if err != nil || !strings.Contains(string(out), "AccessKeyId") {
			return fmt.Errorf("the helper says %q: %w", out, err)
		}
		began = time.Now()
		answer, err := ask(strings.TrimPrefix(url, "http://"), request)
		server = append(server, milliseconds(time.Since(began)))
		if err != nil || !strings.Contains(answer, "AccessKeyId") {
			return fmt.Errorf("the server says %q: %w", answer, err)
		}
	}
	fmt.Println(newSeries("", helper).Median, newSeries("", server).Median)
	return nil
}

// ask sends a request on a new connection and returns all of the answer.
func ask(address, request string) (string, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, request); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	return string(answer), err
}
