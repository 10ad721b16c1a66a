// SPDX-License-Identifier: Apache-2.0

// Package pahogo drives the broker with Go's paho.mqtt.golang, which speaks 3.1 and 3.1.1.
package pahogo

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

const deadline = 60 * time.Second

// address of the broker, for all tests of this run.
var address string

// settings of a broker that takes packets up to 16 MiB.
const roomySettings = "mqtt:\n  options:\n    capabilities:\n      maximum-packet-size: 16777216\n"

var attached = regexp.MustCompile(`attached listener address=(\S+:\d+) id=tcp protocol=tcp`)

func TestMain(m *testing.M) {
	if given := os.Getenv("CORQTT_TEST_ADDRESS"); given != "" {
		address = given
		os.Exit(m.Run())
	}
	started, stop, err := startBroker("")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	address = started
	status := m.Run()
	if err := stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

// startBroker starts a broker with settings in YAML, if any, and returns when it has logged that it started; stop sends
// SIGTERM and wants status 0.
func startBroker(settings string) (listening string, stop func() error, err error) {
	directory, err := os.MkdirTemp("", "corqtt-test-")
	if err != nil {
		return "", nil, err
	}
	flags := []string{"--tcp=127.0.0.1:0", "--ws=off", "--http=off", "--level=info",
		"--shards=" + setting("CORQTT_TEST_SHARDS", "1"), "--runtime=" + setting("CORQTT_TEST_RUNTIME", "auto")}
	if settings != "" {
		path := filepath.Join(directory, "broker.yml")
		if err := os.WriteFile(path, []byte(settings), 0o600); err != nil {
			return "", nil, err
		}
		flags = append(flags, "--conf", path)
	}
	broker := exec.Command(os.Getenv("CORQTT_BIN"), flags...)
	broker.Dir = directory
	broker.Stderr = os.Stderr
	output, err := broker.StdoutPipe()
	if err != nil {
		return "", nil, err
	}
	if err := broker.Start(); err != nil {
		return "", nil, err
	}
	started, exited := make(chan struct{}), make(chan error, 1)
	go func() {
		lines := bufio.NewScanner(output)
		for lines.Scan() {
			if found := attached.FindStringSubmatch(lines.Text()); found != nil {
				listening = found[1]
			}
			if strings.Contains(lines.Text(), "server started") {
				close(started)
			}
		}
		exited <- broker.Wait()
	}()
	select {
	case <-started:
	case err := <-exited:
		return "", nil, fmt.Errorf("the broker exited at start: %v", err)
	case <-time.After(deadline):
		_ = broker.Process.Kill()
		return "", nil, fmt.Errorf("the broker did not start")
	}
	return listening, func() error {
		defer os.RemoveAll(directory)
		if err := broker.Process.Signal(syscall.SIGTERM); err != nil {
			return err
		}
		select {
		case err := <-exited:
			return err
		case <-time.After(deadline):
			_ = broker.Process.Kill()
			return fmt.Errorf("the broker did not exit after SIGTERM")
		}
	}, nil
}

// roomy is a broker for one test that takes packets up to 16 MiB: the option that leads a client to it.
func roomy(t *testing.T) func(*mqtt.ClientOptions) {
	t.Helper()
	there := os.Getenv("CORQTT_TEST_ADDRESS")
	if there == "" {
		started, stop, err := startBroker(roomySettings)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
		there = started
	}
	return func(options *mqtt.ClientOptions) {
		options.Servers = nil
		options.AddBroker("tcp://" + there)
	}
}

func setting(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

func unique(prefix string) string {
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		panic(err)
	}
	return prefix + hex.EncodeToString(random[:])
}

// upTo counts from 0.
func upTo(count int) []string {
	numbers := make([]string, count)
	for number := range numbers {
		numbers[number] = strconv.Itoa(number)
	}
	return numbers
}

// many is a tenth where there are doubles: each message of a client waits for the one before.
func many(count int) int {
	if os.Getenv("CORQTT_TEST_DOUBLES") != "" {
		return count / 10
	}
	return count
}

// client is a connected client whose messages come out of a channel in the order of arrival.
type client struct {
	mqtt.Client
	t     *testing.T
	inbox chan mqtt.Message
	// whether CONNACK told of a session
	resumed bool
}

// eachVersion runs a test for 3.1 and 3.1.1.
func eachVersion(t *testing.T, test func(t *testing.T, version uint)) {
	for version, name := range map[uint]string{3: "3.1", 4: "3.1.1"} {
		t.Run(name, func(t *testing.T) { test(t, version) })
	}
}

func connect(t *testing.T, version uint, configure ...func(*mqtt.ClientOptions)) *client {
	t.Helper()
	made := &client{t: t, inbox: make(chan mqtt.Message, 20_000)}
	options := mqtt.NewClientOptions().
		AddBroker("tcp://" + address).
		SetClientID(unique("g")).
		SetProtocolVersion(version).
		SetAutoReconnect(false).
		SetConnectTimeout(deadline).
		SetDefaultPublishHandler(func(_ mqtt.Client, message mqtt.Message) { made.inbox <- message })
	for _, each := range configure {
		each(options)
	}
	made.Client = mqtt.NewClient(options)
	token := made.Connect()
	made.wait(token, "CONNACK")
	made.resumed = token.(*mqtt.ConnectToken).SessionPresent()
	t.Cleanup(func() { made.Disconnect(0) })
	return made
}

func (c *client) wait(token mqtt.Token, what string) {
	c.t.Helper()
	if !token.WaitTimeout(deadline) {
		c.t.Fatalf("not within %v: %s", deadline, what)
	}
	if token.Error() != nil {
		c.t.Fatalf("%s: %v", what, token.Error())
	}
}

func (c *client) subscribe(filter string, qos byte) {
	c.t.Helper()
	token := c.Subscribe(filter, qos, nil)
	c.wait(token, "SUBACK")
	// of a shared filter the result names what is behind the group
	for name, granted := range token.(*mqtt.SubscribeToken).Result() {
		if granted != qos {
			c.t.Fatalf("granted %d for %s, wanted %d", granted, name, qos)
		}
	}
}

func (c *client) publish(topic string, qos byte, retained bool, payload any) {
	c.t.Helper()
	c.wait(c.Publish(topic, qos, retained, payload), "the message is acknowledged")
}

// receiveInOrder wants these payloads next, and in this order.
func (c *client) receiveInOrder(payloads []string) {
	c.t.Helper()
	for index, payload := range payloads {
		if got := string(c.receive().Payload()); got != payload {
			c.t.Fatalf("message %d: got %s in place of %s", index, got, payload)
		}
	}
}

func (c *client) receive() mqtt.Message {
	c.t.Helper()
	select {
	case message := <-c.inbox:
		return message
	case <-time.After(deadline):
		c.t.Fatalf("not within %v: a message", deadline)
		return nil
	}
}
